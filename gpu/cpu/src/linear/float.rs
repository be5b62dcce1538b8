//! Kernels of float weights: one fused multiply-add per column, in the order of the columns.

#![expect(
    clippy::needless_range_loop,
    reason = "an iterator's functions lack the features of the kernel around them"
)]

use std::marker::PhantomData;

use half::{bf16, f16};

use super::{
    acts::PANEL,
    lanes::{Job, Lanes, Part, TileKernel},
    layout::TILE_ROWS,
};

/// How a column of a tile is stored: 16 values.
pub(super) trait FloatFormat {
    const BYTES: usize;

    /// # Safety
    /// As [`Lanes`]; `column` is good for [`Self::BYTES`].
    unsafe fn load<L: Lanes>(column: *const u8) -> L::F;
}

impl FloatFormat for f32 {
    const BYTES: usize = 4 * TILE_ROWS;

    #[inline(always)]
    unsafe fn load<L: Lanes>(column: *const u8) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load(column.cast()) }
    }
}

impl FloatFormat for f16 {
    const BYTES: usize = 2 * TILE_ROWS;

    #[inline(always)]
    unsafe fn load<L: Lanes>(column: *const u8) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(column.cast()) }
    }
}

impl FloatFormat for bf16 {
    const BYTES: usize = 2 * TILE_ROWS;

    #[inline(always)]
    unsafe fn load<L: Lanes>(column: *const u8) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(column.cast()) }
    }
}

/// Tiles of one format against rows of one panel.
pub(super) struct FloatKernel<W>(PhantomData<W>);

impl<W: FloatFormat> TileKernel for FloatKernel<W> {
    const TILES: usize = 8;

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize>(job: &Job<'_>, part: &Part) {
        // SAFETY: the caller's promise. As many tiles at once as registers hold sums, to hide the latency of
        // the sums and to use a row's value more than once.
        unsafe {
            match L::ACCUMULATORS / ROWS {
                8.. => tiles::<L, W, ROWS, 8>(job, part),
                4..8 => tiles::<L, W, ROWS, 4>(job, part),
                3 => tiles::<L, W, ROWS, 3>(job, part),
                2 => tiles::<L, W, ROWS, 2>(job, part),
                _ => tiles::<L, W, ROWS, 1>(job, part),
            }
        }
    }
}

#[inline(always)]
unsafe fn tiles<L: Lanes, W: FloatFormat, const ROWS: usize, const TILES: usize>(job: &Job<'_>, part: &Part) {
    let mut tile = part.tiles.start;
    // SAFETY: the caller's promise.
    unsafe {
        while tile + TILES <= part.tiles.end {
            group::<L, W, ROWS, TILES>(job, part.row, tile);
            tile += TILES;
        }
        while tile < part.tiles.end {
            group::<L, W, ROWS, 1>(job, part.row, tile);
            tile += 1;
        }
    }
}

#[inline(always)]
unsafe fn group<L: Lanes, W: FloatFormat, const ROWS: usize, const TILES: usize>(
    job: &Job<'_>,
    row: usize,
    tile: usize,
) {
    // SAFETY: a tile is `cols` columns, as is a panel; the rows lie in one panel.
    unsafe {
        let mut weights = [std::ptr::null(); TILES];
        for (t, weights) in weights.iter_mut().enumerate() {
            *weights = job.tile(tile + t);
        }
        let acts = job.acts.panel_floats(row / PANEL).cast::<f32>().add(row % PANEL);
        let mut sums = [[L::splat(0.0); ROWS]; TILES];
        for col in 0..job.cols {
            let mut column = [L::splat(0.0); TILES];
            for t in 0..TILES {
                column[t] = W::load::<L>(weights[t].add(col * W::BYTES));
            }
            for i in 0..ROWS {
                let x = L::splat(*acts.add(col * PANEL + i));
                for t in 0..TILES {
                    sums[t][i] = L::fma(column[t], x, sums[t][i]);
                }
            }
        }
        for t in 0..TILES {
            for i in 0..ROWS {
                job.store::<L>(sums[t][i], tile + t, row + i);
            }
        }
    }
}
