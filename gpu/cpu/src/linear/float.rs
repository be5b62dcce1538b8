//! Kernels of float weights: one fused multiply-add per column, in the order of the columns.

use std::marker::PhantomData;

use super::{
    acts::PANEL,
    lanes::Lanes,
    layout::VECTOR,
    sweep::{Job, Part, TileKernel},
};

/// How pairs of columns are stored.
pub(super) trait FloatFormat {
    /// Bytes of two columns of a tile.
    const PAIR_BYTES: usize;

    /// # Safety
    /// As [`Lanes`]; `pair` is good for [`Self::PAIR_BYTES`].
    unsafe fn load<L: Lanes>(pair: *const u8) -> [L::F; 2];
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl FloatFormat for F32 {
    const PAIR_BYTES: usize = 2 * VECTOR;

    #[inline(always)]
    unsafe fn load<L: Lanes>(pair: *const u8) -> [L::F; 2] {
        // SAFETY: the caller's promise.
        unsafe { [L::load_f32(pair), L::load_f32(pair.add(VECTOR))] }
    }
}

impl FloatFormat for F16 {
    const PAIR_BYTES: usize = VECTOR;

    #[inline(always)]
    unsafe fn load<L: Lanes>(pair: *const u8) -> [L::F; 2] {
        // SAFETY: the caller's promise.
        unsafe { [L::load_f16(pair), L::load_f16(pair.add(VECTOR / 2))] }
    }
}

impl FloatFormat for Bf16 {
    const PAIR_BYTES: usize = VECTOR;

    #[inline(always)]
    unsafe fn load<L: Lanes>(pair: *const u8) -> [L::F; 2] {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16_pair(pair).into() }
    }
}

/// Tiles of one format against rows of one panel.
pub(super) struct FloatKernel<W>(PhantomData<W>);

impl<W: FloatFormat> TileKernel for FloatKernel<W> {
    const TILES: usize = 8;

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize>(job: &Job<'_>, part: &Part) {
        // SAFETY: the caller's promise. As many tiles at once as registers hold sums, to hide the latency of the sums
        // and to use a row's value more than once.
        unsafe {
            match L::SUMS / ROWS {
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
    // SAFETY: a tile is pairs of columns, as is a panel; the rows lie in one panel.
    unsafe {
        let mut weights = [std::ptr::null(); TILES];
        for (t, weights) in weights.iter_mut().enumerate() {
            *weights = job.tile(tile + t);
        }
        let acts = job.acts.panel_floats(row / PANEL).cast::<f32>().add(row % PANEL);
        let mut sums = [[L::splat(0.0); ROWS]; TILES];
        for pair in 0..job.cols.div_ceil(2) {
            let mut columns = [[L::splat(0.0); 2]; TILES];
            for t in 0..TILES {
                columns[t] = W::load::<L>(weights[t].add(pair * W::PAIR_BYTES));
            }
            for odd in 0..2 {
                let x = acts.add((2 * pair + odd) * PANEL);
                for i in 0..ROWS {
                    let x = L::splat(*x.add(i));
                    for t in 0..TILES {
                        sums[t][i] = L::fma(columns[t][odd], x, sums[t][i]);
                    }
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
