//! What matrix products need beyond [`Simd`]: bytes and their dot products, once per instruction set. A
//! vector has 16 lanes, one per row of a tile. Every operation is exact or rounds once, so the kernels give
//! the same bits on all. And what a kernel over them is given.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::ops::Range;

use super::{
    OutPtr,
    acts::Acts,
    layout::{Bits, TILE_ROWS},
    pack::Segment,
};
use crate::simd::Simd;

/// The operations. Code over them must be free of closures and generic adaptors: a closure is compiled
/// without the features of the function around it, and then each operation in it becomes a call.
///
/// # Safety
/// Of all functions: the machine has the instructions, and pointers are good for what is read or written (16
/// values unless said otherwise); no alignment is asked for.
pub(super) trait Lanes: Simd {
    /// 64 bytes: four columns of each row.
    type B: Copy;

    /// Activation rows that a kernel takes at once.
    const ROWS: usize;
    /// Sums that a float kernel keeps in registers.
    const ACCUMULATORS: usize;

    /// Runs the kernel in a function compiled for these instructions and this number of `part.rows`, in
    /// `1..=Self::ROWS`.
    unsafe fn enter<K: TileKernel>(job: &Job<'_>, part: &Part);

    /// Largest magnitude of both; NaN if there is one.
    unsafe fn largest_magnitude(a: Self::F, b: Self::F) -> f32;
    /// The low byte of each lane's bits.
    unsafe fn store_low_bytes(a: Self::F, to: *mut i8);

    /// 16 integers as f32.
    unsafe fn load_u8(from: *const u8) -> Self::F;
    unsafe fn load_i8(from: *const u8) -> Self::F;

    /// Fetches the cache line of `at`, any address.
    unsafe fn prefetch(at: *const u8);
    unsafe fn load_bytes(from: *const u8) -> Self::B;
    unsafe fn low_nibbles(bytes: Self::B) -> Self::B;
    unsafe fn high_nibbles(bytes: Self::B) -> Self::B;
    /// `base | (plane << LEFT >> RIGHT) & mask` in each byte; at most one of the shifts is not 0 and no
    /// masked bit comes from a neighbour.
    unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: Self::B, plane: Self::B, mask: u8) -> Self::B;
    /// Dot products of the rows' `4 * STEPS` unsigned values, of `bits` bits, with the signed ones at `x`,
    /// none of which is -128. Exact.
    unsafe fn dot<const STEPS: usize>(bits: Bits, w: [Self::B; STEPS], x: *const i8) -> Self::F;
}

/// What all kernel calls of one `apply` share.
pub(super) struct Job<'a> {
    pub segment: &'a Segment,
    pub cols: usize,
    pub acts: &'a Acts,
    pub out: OutPtr,
}

/// What one kernel call computes.
pub(super) struct Part {
    /// Tiles of the segment.
    pub tiles: Range<usize>,
    /// First row of activations.
    pub row: usize,
    /// Their number; all lie in one panel.
    pub rows: usize,
}

/// A kernel, compiled for each instruction set and number of activation rows.
pub(super) trait TileKernel {
    /// Tiles that it likes to get at once.
    const TILES: usize;

    /// # Safety
    /// The machine has the instructions of `L`, `part.rows == ROWS`, the part is in range, the segment's
    /// dtype is the kernel's, and no other thread touches the outputs of the part.
    unsafe fn run<L: Lanes, const ROWS: usize>(job: &Job<'_>, part: &Part);
}

impl Job<'_> {
    /// Where tile `tile` begins.
    #[inline(always)]
    pub fn tile(&self, tile: usize) -> *const u8 {
        self.segment.tile(tile).as_ptr()
    }

    /// Writes the sums of tile `tile` for activation row `row`.
    ///
    /// # Safety
    /// As [`TileKernel::run`].
    #[inline(always)]
    pub unsafe fn store<L: Lanes>(&self, sums: L::F, tile: usize, row: usize) {
        let from = tile * TILE_ROWS;
        let lanes = TILE_ROWS.min(self.segment.rows - from);
        // SAFETY: row and columns are in range of the output, checked by `Linear::apply`.
        unsafe { L::store_first(sums, self.out.at(row, self.segment.first_row + from), lanes) }
    }
}
