//! RMSNorm (Zhang and Sennrich, 2019).

use crate::simd::{LANES, Simd, kernel};

/// `x / sqrt(mean(x²) + eps) * weight`, written to `out`; all three have one length.
///
/// # Safety
/// That of [`Simd`]; `out` may be `x`.
#[inline(always)]
pub(crate) unsafe fn rms_norm<V: Simd>(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) {
    let n = weight.len();
    // SAFETY: the caller's promise; no vector goes beyond `n`.
    unsafe {
        let mut squares = V::splat(0.0);
        let mut i = 0;
        while i < n {
            let a = V::load_first(x.add(i), LANES.min(n - i));
            squares = V::fma(a, a, squares);
            i += LANES;
        }
        let scale = V::splat(1.0 / (V::sum(squares) / n as f32 + eps).sqrt());
        let mut i = 0;
        while i < n {
            let lanes = LANES.min(n - i);
            let a = V::mul(V::load_first(x.add(i), lanes), scale);
            V::store_first(V::mul(a, V::load_first(weight.as_ptr().add(i), lanes)), out.add(i), lanes);
            i += LANES;
        }
    }
}

#[inline(always)]
unsafe fn norm_row<V: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && out.len() == weight.len());
    // SAFETY: the lengths are equal; instructions are the caller's promise.
    unsafe { rms_norm::<V>(x.as_ptr(), weight, eps, out.as_mut_ptr()) }
}

kernel!(
    /// Normalises a row.
    ///
    /// # Safety
    /// The machine has `isa`.
    pub(crate) fn norm = norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32])
);
