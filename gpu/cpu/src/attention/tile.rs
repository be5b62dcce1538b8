#![expect(clippy::needless_range_loop, reason = "loops over registers: all bounds are constants")]

use std::mem::MaybeUninit;

use super::{BLOCK_ROWS, TILE};
use crate::{
    kv_pool::{Element, GROUP},
    simd::{LANES, Simd, exp},
};

/// Groups of a tile.
const GROUPS: usize = TILE / GROUP;

/// Keys and values of a tile of one kv head.
pub(super) struct Tile<E> {
    /// Position of its first key.
    pub first: usize,
    /// Each group's keys; null beyond the end of the sequence.
    pub keys: [*const E; GROUPS],
    /// Each group's values.
    pub values: [*const E; GROUPS],
    pub head_dim: usize,
    /// Elements from a value to the next.
    pub value_stride: usize,
}

/// Query rows that a kernel takes at once: some heads of some tokens that follow each other, token by token.
pub(super) struct Block {
    /// `[element][row]`.
    pub queries: *const f32,
    /// Position of the first token.
    pub position: usize,
    /// Heads of each token.
    pub heads: usize,
    pub window: Option<usize>,
    /// Largest score of each row so far.
    pub max: *mut f32,
    /// Sum of each row's weights so far.
    pub sum: *mut f32,
    /// `[row][value_stride]`: each row's weighted values so far.
    pub out: *mut f32,
}

/// Scores or weights: `[row][key]`. Only those of groups that some row sees are written.
type Scores = MaybeUninit<[[f32; TILE]; BLOCK_ROWS]>;

impl Block {
    /// Keys of a tile that the token `token` of this block sees.
    #[inline(always)]
    fn visible(&self, token: usize, tile: usize) -> (usize, usize) {
        let end = self.position + token + 1;
        let start = self.window.map_or(0, |window| end.saturating_sub(window));
        (start.saturating_sub(tile).min(TILE), end.saturating_sub(tile).min(TILE))
    }
}

/// Adds a tile to `rows` rows.
///
/// # Safety
/// That of [`Simd`]; pointers of tile and block are good for what they describe; `rows` is in `1..=BLOCK_ROWS` and a
/// multiple of the block's heads.
#[inline(always)]
pub(super) unsafe fn add_tile<V: Simd, E: Element>(tile: &Tile<E>, block: &Block, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => add::<V, E, 1>(tile, block),
            2 => add::<V, E, 2>(tile, block),
            3 => add::<V, E, 3>(tile, block),
            4 => add::<V, E, 4>(tile, block),
            5 => add::<V, E, 5>(tile, block),
            6 => add::<V, E, 6>(tile, block),
            7 => add::<V, E, 7>(tile, block),
            _ => add::<V, E, 8>(tile, block),
        }
    }
}

#[inline(always)]
unsafe fn add<V: Simd, E: Element, const ROWS: usize>(tile: &Tile<E>, block: &Block) {
    let tokens = ROWS / block.heads;
    let (first_start, first_end) = block.visible(0, tile.first);
    let (last_start, last_end) = block.visible(tokens - 1, tile.first);
    let (from, to) = (first_start / GROUP, last_end.div_ceil(GROUP));
    if from >= to {
        return;
    }
    let mut scores = Scores::uninit();
    let scores = scores.as_mut_ptr().cast::<f32>();
    let mut rescale = [1.0f32; LANES];
    // SAFETY: the caller's promise; groups `from..to` hold keys up to the last token's position.
    unsafe {
        let mut group = from;
        while group < to {
            let left = to - group;
            if const { V::SUMS >= 4 * ROWS } && left >= 4 {
                score::<V, E, ROWS, 4>(tile, block.queries, group, scores);
                group += 4;
            } else if const { V::SUMS >= 2 * ROWS } && left >= 2 {
                score::<V, E, ROWS, 2>(tile, block.queries, group, scores);
                group += 2;
            } else {
                score::<V, E, ROWS, 1>(tile, block.queries, group, scores);
                group += 1;
            }
        }
        for row in 0..ROWS {
            let (start, end) = block.visible(row / block.heads, tile.first);
            if start < end {
                let state = (&mut *block.max.add(row), &mut *block.sum.add(row));
                rescale[row] = weigh::<V>(scores.add(row * TILE), (from, to), (start, end), state);
            }
        }
        if tokens == 1 || (first_end == TILE && last_start == 0) {
            let keys = block.visible(0, tile.first);
            add_values::<V, E, ROWS>(tile, scores, rescale.as_ptr(), keys, block.out);
        } else {
            // Some rows see more keys than others: each takes its own, lest values that it must not see slip in as
            // `0 * value`, which is not 0 for all.
            for row in 0..ROWS {
                let (start, end) = block.visible(row / block.heads, tile.first);
                if start < end {
                    let out = block.out.add(row * tile.value_stride);
                    let (weights, rescale) = (scores.add(row * TILE), rescale.as_ptr().add(row));
                    add_values::<V, E, 1>(tile, weights, rescale, (start, end), out);
                }
            }
        }
    }
}

/// Scores of the groups `group..group + AT_ONCE`: for each key one sum over elements in ascending order.
#[inline(always)]
unsafe fn score<V: Simd, E: Element, const ROWS: usize, const AT_ONCE: usize>(
    tile: &Tile<E>,
    queries: *const f32,
    group: usize,
    scores: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); ROWS]; AT_ONCE];
        for element in 0..tile.head_dim {
            let query = queries.add(element * ROWS);
            for g in 0..AT_ONCE {
                let keys = E::load::<V>(tile.keys[group + g].add(element * GROUP));
                for row in 0..ROWS {
                    sums[g][row] = V::fma(V::splat(*query.add(row)), keys, sums[g][row]);
                }
            }
        }
        for g in 0..AT_ONCE {
            for row in 0..ROWS {
                V::store(sums[g][row], scores.add(row * TILE + (group + g) * GROUP));
            }
        }
    }
}

/// Turns a row's scores of the keys `start..end` into weights, those of other keys in the groups `groups` into 0, and
/// updates its maximum and sum. Returns the factor for what the row has accumulated before.
#[inline(always)]
unsafe fn weigh<V: Simd>(
    row: *mut f32,
    (from, to): (usize, usize),
    (start, end): (usize, usize),
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
    // SAFETY: instructions are the caller's promise; all vectors lie in the row.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        let mut group = from;
        while group < to {
            let first = group * GROUP;
            let mut scores = V::load(row.add(first));
            if start > first || end < first + GROUP {
                let seen = |key: usize| key.clamp(first, first + GROUP) - first;
                scores = V::keep(scores, seen(start), seen(end), f32::NEG_INFINITY);
                V::store(scores, row.add(first));
            }
            largest = V::max(largest, scores);
            group += 1;
        }
        let before = *max;
        let highest = V::largest(largest);
        let now = if highest > before { highest } else { before };
        let shift = V::splat(now);
        let mut weights = V::splat(0.0);
        let mut group = from;
        while group < to {
            let weight = exp::<V>(V::sub(V::load(row.add(group * GROUP)), shift));
            V::store(weight, row.add(group * GROUP));
            weights = V::add(weights, weight);
            group += 1;
        }
        let rescale = exp_of::<V>(before - now);
        *max = now;
        *sum = fma_of::<V>(*sum, rescale, V::sum(weights));
        rescale
    }
}

/// `e^x` of one number.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp_of<V: Simd>(x: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { V::first(exp::<V>(V::splat(x))) }
}

/// `a * b + c` of single numbers, rounded once, without a call to the C library.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub(super) unsafe fn fma_of<V: Simd>(a: f32, b: f32, c: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { V::first(V::fma(V::splat(a), V::splat(b), V::splat(c))) }
}

/// `out = out * rescale + weights · values` over the keys `from..to`, in ascending order.
#[inline(always)]
unsafe fn add_values<V: Simd, E: Element, const ROWS: usize>(
    tile: &Tile<E>,
    weights: *const f32,
    rescale: *const f32,
    keys: (usize, usize),
    out: *mut f32,
) {
    let mut column = 0;
    while column < tile.value_stride {
        let left = (tile.value_stride - column) / LANES;
        // SAFETY: the caller's promise; columns stay below `value_stride`.
        unsafe {
            if const { V::SUMS >= 4 * ROWS } && left >= 4 {
                add_columns::<V, E, ROWS, 4>(tile, weights, rescale, keys, out, column);
                column += 4 * LANES;
            } else if const { V::SUMS >= 2 * ROWS } && left >= 2 {
                add_columns::<V, E, ROWS, 2>(tile, weights, rescale, keys, out, column);
                column += 2 * LANES;
            } else {
                add_columns::<V, E, ROWS, 1>(tile, weights, rescale, keys, out, column);
                column += LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn add_columns<V: Simd, E: Element, const ROWS: usize, const VECTORS: usize>(
    tile: &Tile<E>,
    weights: *const f32,
    rescale: *const f32,
    (from, to): (usize, usize),
    out: *mut f32,
    column: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let at = |row: usize, vector: usize| out.add(row * tile.value_stride + column + vector * LANES);
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                sums[row][vector] = V::mul(V::load(at(row, vector)), V::splat(*rescale.add(row)));
            }
        }
        let mut key = from;
        while key < to {
            let group = key / GROUP;
            let end = to.min((group + 1) * GROUP);
            let mut values = tile.values[group].add(key % GROUP * tile.value_stride + column);
            while key < end {
                let weight = weights.add(key);
                for vector in 0..VECTORS {
                    let value = E::load::<V>(values.add(vector * LANES));
                    for row in 0..ROWS {
                        let weight = V::splat(*weight.add(row * TILE));
                        sums[row][vector] = V::fma(weight, value, sums[row][vector]);
                    }
                }
                values = values.add(tile.value_stride);
                key += 1;
            }
        }
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                V::store(sums[row][vector], at(row, vector));
            }
        }
    }
}
