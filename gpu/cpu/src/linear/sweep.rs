//! Walks the tiles of a segment and the rows of the activations, and calls the kernel of its layout.

use std::ops::Range;

use formats::DType;
use half::{bf16, f16};

use super::{
    OutPtr,
    acts::{Acts, PANEL},
    float::FloatKernel,
    lanes::Lanes,
    layout::TILE_ROWS,
    pack::Segment,
    quantised::{Min, Offset, QuantisedKernel, Super16, SuperMin, U4, U5, U6, U8},
};
use crate::{Isa, simd};

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

/// Computes rows `0..m` for the tiles `tiles` of the job's segment.
///
/// # Safety
/// As [`TileKernel::run`].
pub(super) unsafe fn sweep(isa: Isa, job: &Job<'_>, m: usize, tiles: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => by_dtype::<simd::Avx512>(job, m, tiles),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Fma => by_dtype::<simd::Avx2>(job, m, tiles),
            _ => by_dtype::<simd::Scalar>(job, m, tiles),
        }
    }
}

unsafe fn by_dtype<L: Lanes>(job: &Job<'_>, m: usize, tiles: Range<usize>) {
    // SAFETY: the caller's promise; each dtype's kernel reads what `layout::quantised` says of it.
    unsafe {
        match job.segment.dtype {
            DType::F32 | DType::F8E4M3 => parts::<L, FloatKernel<f32>>(job, m, tiles),
            DType::F16 => parts::<L, FloatKernel<f16>>(job, m, tiles),
            DType::BF16 => parts::<L, FloatKernel<bf16>>(job, m, tiles),
            DType::Q8_0 => parts::<L, QuantisedKernel<U8, Offset<128>>>(job, m, tiles),
            DType::Q4_0 => parts::<L, QuantisedKernel<U4, Offset<8>>>(job, m, tiles),
            DType::Q4_1 => parts::<L, QuantisedKernel<U4, Min>>(job, m, tiles),
            DType::Q5_0 => parts::<L, QuantisedKernel<U5, Offset<16>>>(job, m, tiles),
            DType::Q5_1 => parts::<L, QuantisedKernel<U5, Min>>(job, m, tiles),
            DType::Q4_K => parts::<L, QuantisedKernel<U4, SuperMin>>(job, m, tiles),
            DType::Q5_K => parts::<L, QuantisedKernel<U5, SuperMin>>(job, m, tiles),
            DType::Q6_K => parts::<L, QuantisedKernel<U6, Super16>>(job, m, tiles),
        }
    }
}

/// Rows whose activations, a few hundred kilobytes, stay in the second-level cache while all tiles pass by.
const CHUNK: usize = 16 * PANEL;

/// Few rows: all tiles in one call. Many: chunk by chunk, a few tiles, which stay in the nearest cache, against
/// all rows of the chunk.
unsafe fn parts<L: Lanes, K: TileKernel>(job: &Job<'_>, m: usize, tiles: Range<usize>) {
    let step = if m <= L::ROWS { tiles.len() } else { K::TILES };
    for chunk in (0..m).step_by(CHUNK) {
        let chunk_end = m.min(chunk + CHUNK);
        for from in tiles.clone().step_by(step) {
            let to = tiles.end.min(from + step);
            let mut row = chunk;
            while row < chunk_end {
                let panel_end = (row / PANEL + 1) * PANEL;
                let rows = L::ROWS.min(chunk_end.min(panel_end) - row);
                // SAFETY: the caller's promise; the rows end where the panel does.
                unsafe { L::enter::<K>(job, &Part { tiles: from..to, row, rows }) }
                row += rows;
            }
        }
    }
}
