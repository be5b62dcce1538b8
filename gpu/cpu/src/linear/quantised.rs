//! Kernels of quantised weights: integer dot products per block, summed in f32 in the order of the blocks.

#![expect(
    clippy::needless_range_loop,
    reason = "an iterator's functions lack the features of the kernel around them"
)]

use std::marker::PhantomData;

use super::{
    acts::{ActBlock, PANEL},
    lanes::{Job, Lanes, Part, TileKernel},
    layout::{self, BLOCK, Bits, STEPS, Scales, TILE_ROWS, VECTOR},
};

/// How the bytes of a block are read.
pub(super) trait Quants {
    const BITS: Bits;

    /// # Safety
    /// As [`Lanes`]; `block` is good for [`Bits::block_bytes`].
    unsafe fn unpack<L: Lanes>(block: *const u8) -> [L::B; STEPS];
}

pub(super) struct U4;
pub(super) struct U5;
pub(super) struct U6;
pub(super) struct U8;

impl Quants for U4 {
    const BITS: Bits = Bits::U4;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(block: *const u8) -> [L::B; STEPS] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (L::load_bytes(block), L::load_bytes(block.add(VECTOR)));
            let (c, d) = (L::load_bytes(block.add(2 * VECTOR)), L::load_bytes(block.add(3 * VECTOR)));
            [
                L::low_nibbles(a),
                L::low_nibbles(b),
                L::low_nibbles(c),
                L::low_nibbles(d),
                L::high_nibbles(a),
                L::high_nibbles(b),
                L::high_nibbles(c),
                L::high_nibbles(d),
            ]
        }
    }
}

impl Quants for U5 {
    const BITS: Bits = Bits::U5;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(block: *const u8) -> [L::B; STEPS] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b, c, d, e, f, g, h] = U4::unpack::<L>(block);
            let high = L::load_bytes(block.add(4 * VECTOR));
            [
                L::merge::<4, 0>(a, high, 16),
                L::merge::<3, 0>(b, high, 16),
                L::merge::<2, 0>(c, high, 16),
                L::merge::<1, 0>(d, high, 16),
                L::merge::<0, 0>(e, high, 16),
                L::merge::<0, 1>(f, high, 16),
                L::merge::<0, 2>(g, high, 16),
                L::merge::<0, 3>(h, high, 16),
            ]
        }
    }
}

impl Quants for U6 {
    const BITS: Bits = Bits::U6;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(block: *const u8) -> [L::B; STEPS] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b, c, d, e, f, g, h] = U4::unpack::<L>(block);
            let (first, second) =
                (L::load_bytes(block.add(4 * VECTOR)), L::load_bytes(block.add(5 * VECTOR)));
            [
                L::merge::<4, 0>(a, first, 48),
                L::merge::<2, 0>(b, first, 48),
                L::merge::<0, 0>(c, first, 48),
                L::merge::<0, 2>(d, first, 48),
                L::merge::<4, 0>(e, second, 48),
                L::merge::<2, 0>(f, second, 48),
                L::merge::<0, 0>(g, second, 48),
                L::merge::<0, 2>(h, second, 48),
            ]
        }
    }
}

impl Quants for U8 {
    const BITS: Bits = Bits::U8;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(block: *const u8) -> [L::B; STEPS] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut steps = [L::load_bytes(block); STEPS];
            for (i, step) in steps.iter_mut().enumerate() {
                *step = L::load_bytes(block.add(i * VECTOR));
            }
            steps
        }
    }
}

/// How scales are read.
pub(super) trait ScaleFormat {
    const SCALES: Scales;
    /// Scales change every 16 columns, not every 32.
    const HALVES: bool = false;

    /// Scale and minimum of half `half` of a block (0 if there are no halves), from the scales of its
    /// super-block and its own.
    ///
    /// # Safety
    /// As [`Lanes`]; the pointers are good for [`Scales::outer_bytes`] and [`Scales::inner_bytes`].
    unsafe fn load<L: Lanes>(outer: *const u8, inner: *const u8, half: usize) -> (L::F, L::F);
}

pub(super) struct Offset<const OFFSET: u8>;
pub(super) struct Min;
pub(super) struct SuperMin;
pub(super) struct Super16;

impl<const OFFSET: u8> ScaleFormat for Offset<OFFSET> {
    const SCALES: Scales = Scales::Offset(OFFSET);

    #[inline(always)]
    unsafe fn load<L: Lanes>(_: *const u8, inner: *const u8, _: usize) -> (L::F, L::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = L::load_f16(inner.cast());
            (scale, L::mul(scale, L::splat(-f32::from(OFFSET))))
        }
    }
}

impl ScaleFormat for Min {
    const SCALES: Scales = Scales::Min;

    #[inline(always)]
    unsafe fn load<L: Lanes>(_: *const u8, inner: *const u8, _: usize) -> (L::F, L::F) {
        // SAFETY: the caller's promise.
        unsafe { (L::load_f16(inner.cast()), L::load_f16(inner.add(2 * TILE_ROWS).cast())) }
    }
}

impl ScaleFormat for SuperMin {
    const SCALES: Scales = Scales::SuperMin;

    #[inline(always)]
    unsafe fn load<L: Lanes>(outer: *const u8, inner: *const u8, _: usize) -> (L::F, L::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = L::mul(L::load_f16(outer.cast()), L::load_u8(inner));
            let min = L::mul(L::load_f16(outer.add(2 * TILE_ROWS).cast()), L::load_u8(inner.add(TILE_ROWS)));
            (scale, L::mul(min, L::splat(-1.0)))
        }
    }
}

impl ScaleFormat for Super16 {
    const SCALES: Scales = Scales::Super16;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn load<L: Lanes>(outer: *const u8, inner: *const u8, half: usize) -> (L::F, L::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = L::mul(L::load_f16(outer.cast()), L::load_i8(inner.add(half * TILE_ROWS)));
            (scale, L::mul(scale, L::splat(-32.0)))
        }
    }
}

/// Tiles of one format against rows of one panel.
pub(super) struct QuantisedKernel<Q, S>(PhantomData<(Q, S)>);

impl<Q: Quants, S: ScaleFormat> TileKernel for QuantisedKernel<Q, S> {
    const TILES: usize = 2;

    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize>(job: &Job<'_>, part: &Part) {
        let blocks = job.cols / BLOCK;
        let acts = job.acts.panel_blocks(part.row / PANEL);
        for tile in part.tiles.clone() {
            // SAFETY: a tile is `blocks` blocks, as is a panel; the part's rows lie in one panel.
            unsafe {
                let sums = tile_sums::<L, Q, S, ROWS>(job.tile(tile), acts, part.row % PANEL, blocks);
                for i in 0..ROWS {
                    job.store::<L>(sums[i], tile, part.row + i);
                }
            }
        }
    }
}

/// Bytes ahead of the block at work that are fetched.
const PREFETCH: usize = 2048;

/// One tile against lanes `lane..lane + ROWS` of a panel. Per output, block by block: add the minimum's
/// share, then the dot product's, each with one rounding.
///
/// # Safety
/// As [`Lanes`]; the pointers are good for `blocks` blocks, `lane + ROWS <= PANEL`.
#[inline(always)]
unsafe fn tile_sums<L: Lanes, Q: Quants, S: ScaleFormat, const ROWS: usize>(
    tile: *const u8,
    acts: *const ActBlock,
    lane: usize,
    blocks: usize,
) -> [L::F; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [L::splat(0.0); ROWS];
        for block in 0..blocks {
            let at = layout::block_at(Q::BITS, S::SCALES, block);
            let (outer, quants, inner) = (tile.add(at.outer), tile.add(at.quants), tile.add(at.inner));
            let mut ahead = 0;
            while ahead < Q::BITS.block_bytes() + S::SCALES.inner_bytes() {
                L::prefetch(quants.wrapping_add(PREFETCH + ahead));
                ahead += VECTOR;
            }
            let weights = Q::unpack::<L>(quants);
            let x = acts.add(block);
            let q = (&raw const (*x).q).cast::<[i8; BLOCK]>().add(lane).cast::<i8>();
            let scale = (&raw const (*x).scale).cast::<f32>().add(lane);
            if S::HALVES {
                let [a, b, c, d, e, f, g, h] = weights;
                for (half, weights) in [[a, b, c, d], [e, f, g, h]].into_iter().enumerate() {
                    let (d, min) = S::load::<L>(outer, inner, half);
                    let sum = (&raw const (*x).half_sum[half]).cast::<f32>().add(lane);
                    for i in 0..ROWS {
                        let dot = L::dot(Q::BITS, weights, q.add(i * BLOCK + half * BLOCK / 2));
                        sums[i] = L::fma(min, L::splat(*sum.add(i)), sums[i]);
                        sums[i] = L::fma(dot, L::mul(d, L::splat(*scale.add(i))), sums[i]);
                    }
                }
            } else {
                let (d, min) = S::load::<L>(outer, inner, 0);
                let sum = (&raw const (*x).sum).cast::<f32>().add(lane);
                for i in 0..ROWS {
                    let dot = L::dot(Q::BITS, weights, q.add(i * BLOCK));
                    sums[i] = L::fma(min, L::splat(*sum.add(i)), sums[i]);
                    sums[i] = L::fma(dot, L::mul(d, L::splat(*scale.add(i))), sums[i]);
                }
            }
        }
        sums
    }
}
