//! Walks the tiles of a segment and the rows of the activations, and calls the kernel of its layout.

use std::ops::Range;

use formats::DType;
use half::{bf16, f16};

use super::{
    acts::PANEL,
    float::FloatKernel,
    lanes::{Job, Lanes, Part, TileKernel},
    quantised::{Min, Offset, QuantisedKernel, Super16, SuperMin, U4, U5, U6, U8},
};
use crate::{Isa, simd};

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
