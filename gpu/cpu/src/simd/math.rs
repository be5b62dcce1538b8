use super::Simd;

/// `e^x` within 2 units of the last place for `x` in -87..=88, which larger ones are cut to; exactly 0 below.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Simd>(x: V::F) -> V::F {
    // ln 2 in two parts: the first has trailing zeros, so that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    /// 1 / n! for n = 6, 5, …, 0.
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: the caller's promise.
    unsafe {
        let high = V::splat(HIGHEST);
        let cut = V::select_less(x, high, x, high);
        let shifted = V::fma(cut, V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = V::sub(shifted, V::splat(ROUND));
        let r = V::fnma(n, V::splat(LN2_HIGH), cut);
        let r = V::fnma(n, V::splat(LN2_LOW), r);
        let mut p = V::splat(TAYLOR[0]);
        let mut i = 1;
        while i < TAYLOR.len() {
            p = V::fma(p, r, V::splat(TAYLOR[i]));
            i += 1;
        }
        let y = V::mul(p, V::power_of_two(shifted));
        V::select_less(x, V::splat(LOWEST), V::splat(0.0), y)
    }
}

/// `x / (1 + e^-x)`.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<V: Simd>(x: V::F) -> V::F {
    // SAFETY: the caller's promise.
    unsafe {
        let e = exp::<V>(V::sub(V::splat(0.0), x));
        V::div(x, V::add(V::splat(1.0), e))
    }
}
