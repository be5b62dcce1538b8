use std::arch::x86_64::*;

use super::{Bits, Job, Lanes, Part, TileKernel};
use crate::simd::Avx2;

impl Lanes for Avx2 {
    type B = [__m256i; 2];

    const ROWS: usize = 2;
    const ACCUMULATORS: usize = 4;

    unsafe fn enter<K: TileKernel>(job: &Job<'_>, part: &Part) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn rows<K: TileKernel, const ROWS: usize>(job: &Job<'_>, part: &Part) {
            // SAFETY: the caller's promise.
            unsafe { K::run::<Avx2, ROWS>(job, part) }
        }
        // SAFETY: the caller's promise.
        unsafe {
            match part.rows {
                1 => rows::<K, 1>(job, part),
                _ => rows::<K, 2>(job, part),
            }
        }
    }

    #[inline(always)]
    unsafe fn largest_magnitude(a: Self::F, b: Self::F) -> f32 {
        // SAFETY: the caller's promise. Magnitudes order like their bits, NaN above all.
        unsafe {
            let a = _mm256_max_epu32(magnitude(a[0]), magnitude(a[1]));
            let b = _mm256_max_epu32(magnitude(b[0]), magnitude(b[1]));
            let eight = _mm256_max_epu32(a, b);
            let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b01>(two));
            f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned())
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(a: Self::F, to: *mut i8) {
        // SAFETY: the caller's promise.
        unsafe {
            let mask = _mm256_set1_epi32(255);
            let low = _mm256_and_si256(_mm256_castps_si256(a[0]), mask);
            let high = _mm256_and_si256(_mm256_castps_si256(a[1]), mask);
            // Packing works within halves of 128 bits; the permutation puts the groups of four in order.
            let words = _mm256_packus_epi32(low, high);
            let bytes = _mm256_packus_epi16(words, words);
            let ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(ordered));
        }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint about any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn low_nibbles(bytes: Self::B) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn high_nibbles(bytes: Self::B) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe { Self::low_nibbles([_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])]) }
    }

    #[inline(always)]
    unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: Self::B, plane: Self::B, mask: u8) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe {
            [merge::<LEFT, RIGHT>(base[0], plane[0], mask), merge::<LEFT, RIGHT>(base[1], plane[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn dot<const STEPS: usize>(bits: Bits, w: [Self::B; STEPS], x: *const i8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); 2];
            match bits {
                // 2 · 127 · (2^bits - 1) · run < 2^15
                Bits::U4 => dot_short::<8, STEPS>(&mut sums, &w, x),
                Bits::U5 => dot_short::<4, STEPS>(&mut sums, &w, x),
                Bits::U6 => dot_short::<2, STEPS>(&mut sums, &w, x),
                Bits::U8 => {
                    // Two products of bytes can overflow, so as `16 * high + low` nibbles.
                    let (mut low, mut high) = (w, w);
                    for step in 0..STEPS {
                        low[step] = Self::low_nibbles(w[step]);
                        high[step] = Self::high_nibbles(w[step]);
                    }
                    dot_short::<8, STEPS>(&mut sums, &high, x);
                    sums = [_mm256_slli_epi32::<4>(sums[0]), _mm256_slli_epi32::<4>(sums[1])];
                    dot_short::<8, STEPS>(&mut sums, &low, x);
                }
            }
            [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])]
        }
    }
}

#[inline(always)]
unsafe fn magnitude(a: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(i32::MAX)) }
}

#[inline(always)]
unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: __m256i, plane: __m256i, mask: u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let plane = _mm256_sll_epi16(plane, _mm_cvtsi32_si128(LEFT.cast_signed()));
        let plane = _mm256_srl_epi16(plane, _mm_cvtsi32_si128(RIGHT.cast_signed()));
        _mm256_or_si256(base, _mm256_and_si256(plane, _mm256_set1_epi8(mask.cast_signed())))
    }
}

/// Adds to `sums`: products in 16 bits over runs of `RUN` steps, which cannot overflow, widened after each.
#[inline(always)]
unsafe fn dot_short<const RUN: usize, const STEPS: usize>(
    sums: &mut [__m256i; 2],
    w: &[[__m256i; 2]; STEPS],
    x: *const i8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut step = 0;
        while step < STEPS {
            let mut short = [_mm256_setzero_si256(); 2];
            let end = if step + RUN < STEPS { step + RUN } else { STEPS };
            while step < end {
                let x = _mm256_set1_epi32(x.cast::<i32>().add(step).read_unaligned());
                short[0] = _mm256_add_epi16(short[0], _mm256_maddubs_epi16(w[step][0], x));
                short[1] = _mm256_add_epi16(short[1], _mm256_maddubs_epi16(w[step][1], x));
                step += 1;
            }
            let ones = _mm256_set1_epi16(1);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(short[0], ones));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(short[1], ones));
        }
    }
}
