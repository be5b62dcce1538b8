//! The gate of the MLP.

use crate::simd::{LANES, Simd, kernel, silu};

#[inline(always)]
unsafe fn silu_mul_row<V: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n);
    let mut i = 0;
    while i < n {
        let lanes = LANES.min(n - i);
        // SAFETY: no vector goes beyond `n`; instructions are the caller's promise.
        unsafe {
            let a = silu::<V>(V::load_first(gate.as_ptr().add(i), lanes));
            let b = V::load_first(up.as_ptr().add(i), lanes);
            V::store_first(V::mul(a, b), out.as_mut_ptr().add(i), lanes);
        }
        i += LANES;
    }
}

kernel!(
    /// `silu(gate) * up`.
    ///
    /// # Safety
    /// The machine has `isa`.
    pub(crate) fn silu_mul = silu_mul_row(gate: &[f32], up: &[f32], out: &mut [f32])
);
