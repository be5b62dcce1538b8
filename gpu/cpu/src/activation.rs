//! Element by element: the gate of the MLP and the residual sum.

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

#[inline(always)]
unsafe fn add_columns<V: Simd>(into: *mut f32, from: *const f32, rows: usize, columns: usize, stride: usize) {
    let mut row = 0;
    while row < rows {
        let mut i = 0;
        while i < columns {
            let lanes = LANES.min(columns - i);
            // SAFETY: the caller's promise; no vector goes beyond `columns`.
            unsafe {
                let at = row * stride + i;
                let sum = V::add(V::load_first(into.add(at), lanes), V::load_first(from.add(at), lanes));
                V::store_first(sum, into.add(at), lanes);
            }
            i += LANES;
        }
        row += 1;
    }
}

kernel!(
    /// Adds the first `columns` columns of `rows` rows at `from` to those at `into`; rows are `stride` apart in both.
    ///
    /// # Safety
    /// The machine has `isa`, the elements exist, and nobody else uses those of `into` meanwhile.
    pub(crate) fn add = add_columns(into: *mut f32, from: *const f32, rows: usize, columns: usize, stride: usize)
);
