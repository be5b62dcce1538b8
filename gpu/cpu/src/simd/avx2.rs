use std::arch::x86_64::*;

use super::{LANES, Simd};

/// AVX2 with FMA and F16C: a vector is two registers, lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

type Pair = [__m256; 2];

/// Sum of eight lanes, halves first.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(a: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Largest of eight lanes.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn largest_of_eight(a: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

impl Simd for Avx2 {
    type F = Pair;

    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn fnma(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn select_less(a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]);
            [_mm256_blendv_ps(no[0], yes[0], low), _mm256_blendv_ps(no[1], yes[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn keep(a: Pair, from: usize, to: usize, fill: f32) -> Pair {
        // SAFETY: the trait's contract.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let fill = _mm256_set1_ps(fill);
            let half = |a: __m256, first: i32| {
                let lane = _mm256_add_epi32(lane, _mm256_set1_epi32(first));
                let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to as i32), lane);
                let above = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from as i32 - 1));
                _mm256_blendv_ps(fill, a, _mm256_castsi256_ps(_mm256_and_si256(below, above)))
            };
            [half(a[0], 0), half(a[1], 8)]
        }
    }

    #[inline(always)]
    unsafe fn power_of_two(shifted: Pair) -> Pair {
        // SAFETY: the trait's contract.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_castps_si256(shifted[0]), bias);
            let high = _mm256_add_epi32(_mm256_castps_si256(shifted[1]), bias);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn sum(a: Pair) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { sum_of_eight(_mm256_add_ps(a[0], a[1])) }
    }

    #[inline(always)]
    unsafe fn largest(a: Pair) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { largest_of_eight(_mm256_max_ps(a[0], a[1])) }
    }

    #[inline(always)]
    unsafe fn first(a: Pair) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cvtss_f32(a[0]) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Pair {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the trait's contract; `n ≤ 16`.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Pair {
        // SAFETY: the trait's contract.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Pair {
        // SAFETY: the trait's contract.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(a: Pair, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe {
            _mm256_storeu_ps(to, a[0]);
            _mm256_storeu_ps(to.add(8), a[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_first(a: Pair, to: *mut f32, n: usize) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the trait's contract; `n ≤ 16`.
        unsafe {
            Self::store(a, lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    unsafe fn store_f16(a: Pair, to: *mut u16) {
        // SAFETY: the trait's contract.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0]));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1]));
        }
    }
}
