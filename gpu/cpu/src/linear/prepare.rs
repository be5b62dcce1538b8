//! Converts activations to what kernels read: as they are, and rounded to bytes.

#![expect(
    clippy::needless_range_loop,
    reason = "an iterator's functions lack the features of the kernel around them"
)]

use std::{cell::UnsafeCell, ops::Range};

use super::{
    acts::{ActBlock, Acts, PANEL},
    lanes::Lanes,
    layout::BLOCK,
};
use crate::simd::kernel;

/// Largest magnitude of a quantised value.
const MAX: f32 = 127.0;
/// 1.5 · 2²³: adding it rounds to the nearest integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Acts {
    /// Converts the rows `rows`, given as `x` (`rows.len() × cols`, row-major).
    ///
    /// # Safety
    /// No other thread reads these rows or prepares any of them meanwhile.
    ///
    /// # Panics
    /// If `rows` or the length of `x` do not fit.
    pub unsafe fn prepare(&self, x: &[f32], rows: Range<usize>) {
        assert!(rows.end <= self.rows() && x.len() == rows.len() * self.cols(), "rows {rows:?} do not fit");
        if self.cols() == 0 {
            return;
        }
        for (row, x) in rows.zip(x.chunks_exact(self.cols())) {
            let (panel, lane) = (row / PANEL, row % PANEL);
            if self.format().quantised {
                let blocks = self.cols() / BLOCK;
                // SAFETY: only this lane of the panel's blocks is written, and the caller keeps others away
                // from it.
                unsafe { quantised_row(self.isa, x, &self.blocks[panel * blocks..][..blocks], lane) };
            }
            if self.format().float {
                let floats = &self.floats[panel * self.cols()..][..self.cols()];
                for (x, cell) in x.iter().zip(floats) {
                    // SAFETY: as above; `lane < PANEL`.
                    unsafe { cell.get().cast::<f32>().add(lane).write(*x) };
                }
            }
        }
    }
}

kernel! {
    /// Quantises the row `x` into lane `lane` of a panel's blocks.
    ///
    /// # Safety
    /// The machine has `isa`, `x` is as long as the blocks, `lane` is less than [`PANEL`], and nobody
    /// else reads or writes that lane meanwhile.
    fn quantised_row = row_in(x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize)
}

#[inline(always)]
unsafe fn row_in<L: Lanes>(x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    for i in 0..blocks.len() {
        // SAFETY: the caller's promise; fields of other lanes are left alone.
        unsafe {
            let x = x.as_ptr().add(i * BLOCK);
            let block = blocks[i].get();
            let q = (&raw mut (*block).q).cast::<[i8; BLOCK]>().add(lane).cast::<i8>();
            let (scale, [first, second]) = round::<L>(x, q);
            (&raw mut (*block).scale).cast::<f32>().add(lane).write(scale);
            (&raw mut (*block).sum).cast::<f32>().add(lane).write(scale * (first + second));
            (&raw mut (*block).half_sum[0]).cast::<f32>().add(lane).write(scale * first);
            (&raw mut (*block).half_sum[1]).cast::<f32>().add(lane).write(scale * second);
        }
    }
}

/// Writes the bytes of a block; returns their scale and the sums of both halves. A value that is not finite
/// makes the scale not finite, so that it shows in the output.
#[inline(always)]
unsafe fn round<L: Lanes>(x: *const f32, q: *mut i8) -> (f32, [f32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = (L::load(x), L::load(x.add(BLOCK / 2)));
        let largest = L::largest_magnitude(first, second);
        let vanishes = largest < MAX / f32::MAX;
        let inverse = L::splat(if vanishes { 0.0 } else { MAX / largest });
        let first = L::add(L::mul(first, inverse), L::splat(ROUND));
        let second = L::add(L::mul(second, inverse), L::splat(ROUND));
        L::store_low_bytes(first, q);
        L::store_low_bytes(second, q.add(BLOCK / 2));
        let sums = [L::sum(L::sub(first, L::splat(ROUND))), L::sum(L::sub(second, L::splat(ROUND)))];
        (if vanishes { 0.0 } else { largest / MAX }, sums)
    }
}
