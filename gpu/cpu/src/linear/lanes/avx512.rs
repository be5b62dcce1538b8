use std::arch::x86_64::*;

use super::{Bits, Job, Lanes, Part, TileKernel};
use crate::simd::Avx512;

impl Lanes for Avx512 {
    type B = __m512i;

    const ROWS: usize = 8;
    const ACCUMULATORS: usize = 24;

    unsafe fn enter<K: TileKernel>(job: &Job<'_>, part: &Part) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        unsafe fn rows<K: TileKernel, const ROWS: usize>(job: &Job<'_>, part: &Part) {
            // SAFETY: the caller's promise.
            unsafe { K::run::<Avx512, ROWS>(job, part) }
        }
        // SAFETY: the caller's promise.
        unsafe {
            match part.rows {
                1 => rows::<K, 1>(job, part),
                2 => rows::<K, 2>(job, part),
                3 => rows::<K, 3>(job, part),
                4 => rows::<K, 4>(job, part),
                5 => rows::<K, 5>(job, part),
                6 => rows::<K, 6>(job, part),
                7 => rows::<K, 7>(job, part),
                _ => rows::<K, 8>(job, part),
            }
        }
    }

    #[inline(always)]
    unsafe fn largest_magnitude(a: __m512, b: __m512) -> f32 {
        // SAFETY: the caller's promise. Magnitudes order like their bits, NaN above all.
        unsafe {
            let mask = _mm512_set1_epi32(i32::MAX);
            let a = _mm512_and_si512(_mm512_castps_si512(a), mask);
            let b = _mm512_and_si512(_mm512_castps_si512(b), mask);
            f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(a, b)))
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(a: __m512, to: *mut i8) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(a))) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint about any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn low_nibbles(bytes: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high_nibbles(bytes: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: __m512i, plane: __m512i, mask: u8) -> __m512i {
        /// `a | b & c`
        const OR_AND: i32 = 0xF8;
        // SAFETY: the caller's promise.
        unsafe {
            let plane = _mm512_srli_epi16::<RIGHT>(_mm512_slli_epi16::<LEFT>(plane));
            _mm512_ternarylogic_epi32::<OR_AND>(base, plane, _mm512_set1_epi8(mask.cast_signed()))
        }
    }

    #[inline(always)]
    unsafe fn dot<const STEPS: usize>(_: Bits, w: [__m512i; STEPS], x: *const i8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = _mm512_setzero_si512();
            for (step, w) in w.into_iter().enumerate() {
                let x = _mm512_set1_epi32(x.cast::<i32>().add(step).read_unaligned());
                sum = _mm512_dpbusd_epi32(sum, w, x);
            }
            _mm512_cvtepi32_ps(sum)
        }
    }
}
