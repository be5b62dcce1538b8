use super::tile::{exp_of, fma_of};
use crate::simd::{LANES, Simd, kernel};

/// What query rows have accumulated over some keys. A row that has seen no key has sum 0.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    /// Largest score.
    pub max: Vec<f32>,
    /// Sum of weights, relative to the largest score.
    pub sum: Vec<f32>,
    /// `[row][stride]`: sum of weighted values.
    pub out: Vec<f32>,
    stride: usize,
}

impl Rows {
    /// Room for `rows` rows of values of `stride` elements, a multiple of 16.
    pub fn new(rows: usize, stride: usize) -> Self {
        Self { max: vec![0.0; rows], sum: vec![0.0; rows], out: vec![0.0; rows * stride], stride }
    }

    pub fn bytes(rows: usize, stride: usize) -> u64 {
        (rows * (stride + 2) * size_of::<f32>()) as u64
    }

    /// Begins anew with the first `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        self.max[..rows].fill(f32::NEG_INFINITY);
        self.sum[..rows].fill(0.0);
        self.out[..rows * self.stride].fill(0.0);
    }

    pub fn copy_from(&mut self, other: &Self, rows: usize) {
        self.max[..rows].copy_from_slice(&other.max[..rows]);
        self.sum[..rows].copy_from_slice(&other.sum[..rows]);
        self.out[..rows * self.stride].copy_from_slice(&other.out[..rows * self.stride]);
    }
}

kernel!(
    /// Adds what the first `rows` rows of `next` have accumulated, over keys after those of `into`, to `into`.
    ///
    /// # Safety
    /// The machine has `isa`.
    pub(crate) fn merge = merge_rows(into: &mut Rows, next: &Rows, rows: usize)
);

#[inline(always)]
pub(super) unsafe fn merge_rows<V: Simd>(into: &mut Rows, next: &Rows, rows: usize) {
    let stride = into.stride;
    assert!(next.stride == stride && stride.is_multiple_of(LANES));
    for row in 0..rows {
        if next.sum[row] == 0.0 {
            continue;
        }
        let (out, addend) = (&mut into.out[row * stride..][..stride], &next.out[row * stride..][..stride]);
        if into.sum[row] == 0.0 {
            out.copy_from_slice(addend);
            into.max[row] = next.max[row];
            into.sum[row] = next.sum[row];
            continue;
        }
        let max = if next.max[row] > into.max[row] { next.max[row] } else { into.max[row] };
        // SAFETY: both rows have whole vectors; instructions are the caller's promise.
        unsafe {
            let (old, new) = (exp_of::<V>(into.max[row] - max), exp_of::<V>(next.max[row] - max));
            into.sum[row] = fma_of::<V>(into.sum[row], old, next.sum[row] * new);
            for (out, addend) in out.chunks_exact_mut(LANES).zip(addend.chunks_exact(LANES)) {
                let scaled = V::mul(V::load(addend.as_ptr()), V::splat(new));
                V::store(V::fma(V::load(out.as_ptr()), V::splat(old), scaled), out.as_mut_ptr());
            }
        }
        into.max[row] = max;
    }
}
