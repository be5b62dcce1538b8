use std::ops::Range;

use super::{
    BLOCK_ROWS, Inputs, Place, Rows, SEGMENT, SPAN_ROWS, TILE,
    rows::merge_rows,
    tile::{Block, Tile, add_tile},
};
use crate::{
    kv_pool::{Element, GROUP, KvHead},
    memory::Shared,
    simd::{LANES, Simd, kernel},
};

/// Query rows of some tokens of a sequence that share a kv head: token by token, head by head.
pub(crate) struct Span<'a, E> {
    pub inputs: &'a Inputs<'a>,
    pub kv: KvHead<E>,
    pub kv_head: usize,
    pub place: Place<'a>,
    /// Tokens of the sequence in this step; at most [`tokens_per_span`].
    pub tokens: Range<usize>,
}

/// What one thread needs for a span.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// A query, and a key and a value when these are stored.
    pub head: Vec<f32>,
    /// Packed queries, block by block.
    queries: Vec<f32>,
    /// The result.
    pub total: Rows,
    /// One segment of it.
    segment: Rows,
}

impl Scratch {
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let rows = max_rows(heads / kv_heads);
        let stride = head_dim.next_multiple_of(LANES);
        Self {
            head: vec![0.0; 2 * stride],
            queries: vec![0.0; rows * head_dim],
            total: Rows::new(rows, stride),
            segment: Rows::new(rows, stride),
        }
    }

    pub fn bytes(heads: usize, kv_heads: usize, head_dim: usize) -> u64 {
        let rows = max_rows(heads / kv_heads);
        let stride = head_dim.next_multiple_of(LANES);
        ((2 * stride + rows * head_dim) * size_of::<f32>()) as u64 + 2 * Rows::bytes(rows, stride)
    }
}

/// Query rows of the largest span.
fn max_rows(group: usize) -> usize {
    tokens_per_span(group) * group
}

/// Tokens that a span takes at most.
pub(crate) fn tokens_per_span(group: usize) -> usize {
    (SPAN_ROWS / group).max(1)
}

impl<E: Element> Span<'_, E> {
    fn rows(&self) -> usize {
        self.tokens.len() * self.inputs.group()
    }

    /// Position of a token.
    fn position(&self, token: usize) -> usize {
        self.place.position + token
    }

    /// Positions that some row of the span sees.
    fn visible(&self) -> Range<usize> {
        let first = self.position(self.tokens.start) + 1;
        let start = self.inputs.window.map_or(0, |window| first.saturating_sub(window));
        start..self.position(self.tokens.end)
    }

    /// Rows of the block that begins at `row`: whole tokens, or some heads of one token where a group is too large.
    fn block_rows(&self, row: usize) -> usize {
        match self.inputs.group() {
            group @ ..=BLOCK_ROWS => (BLOCK_ROWS / group * group).min(self.rows() - row),
            group => BLOCK_ROWS.min(group - row % group),
        }
    }

    /// Asks for the beginnings of a tile's pieces: pages lie apart, so the machine does not see them coming.
    #[inline(always)]
    fn prefetch(&self, first: usize) {
        /// Cache lines of each piece; the machine finds the rest by itself.
        const LINES: usize = 4;
        let end = self.visible().end.min(first + TILE);
        let mut position = first;
        while position < end {
            let (keys, values) = self.kv.group(self.place.pages, position);
            let mut line = 0;
            while line < LINES {
                prefetch_line(keys.cast::<u8>().wrapping_add(line * 64));
                prefetch_line(values.cast::<u8>().wrapping_add(line * 64));
                line += 1;
            }
            position += GROUP;
        }
    }

    #[inline(always)]
    fn tile(&self, first: usize) -> Tile<E> {
        let mut tile = Tile {
            first,
            keys: [std::ptr::null(); TILE / GROUP],
            values: [std::ptr::null(); TILE / GROUP],
            head_dim: self.inputs.head_dim,
            value_stride: self.inputs.head_dim.next_multiple_of(LANES),
        };
        let end = self.visible().end;
        for group in 0..TILE / GROUP {
            let position = first + group * GROUP;
            if position < end {
                let (keys, values) = self.kv.group(self.place.pages, position);
                (tile.keys[group], tile.values[group]) = (keys, values);
            }
        }
        tile
    }
}

/// Brings a line into the cache some time.
#[inline(always)]
fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

kernel!(
    /// Computes the segments `segments` of a span, merged in ascending order, into `scratch.total`.
    ///
    /// # Safety
    /// The machine has `isa`; keys and values of all visible positions of these segments are stored, and nobody
    /// writes them meanwhile.
    pub(crate) fn attend = attend_span<E: Element>(
        span: &Span<'_, E>,
        segments: Range<usize>,
        scratch: &mut Scratch,
    )
);

#[inline(always)]
unsafe fn attend_span<V: Simd, E: Element>(
    span: &Span<'_, E>,
    segments: Range<usize>,
    scratch: &mut Scratch,
) {
    let rows = span.rows();
    let visible = span.visible();
    span.prefetch(visible.start.max(segments.start * SEGMENT) / TILE * TILE);
    // SAFETY: instructions are the caller's promise.
    unsafe { pack_queries::<V, E>(span, &mut scratch.head, &mut scratch.queries) };
    for (index, segment) in segments.enumerate() {
        let into = if index == 0 { &mut scratch.total } else { &mut scratch.segment };
        into.reset(rows);
        let end = visible.end.min((segment + 1) * SEGMENT);
        let mut first = visible.start.max(segment * SEGMENT) / TILE * TILE;
        while first < end {
            let tile = span.tile(first);
            span.prefetch(first + TILE);
            // SAFETY: the caller's promise; the tile's pointers cover all visible positions.
            unsafe { add_to_blocks::<V, E>(span, &tile, &scratch.queries, into) };
            first += TILE;
        }
        if index > 0 {
            // SAFETY: instructions are the caller's promise.
            unsafe { merge_rows::<V>(&mut scratch.total, &scratch.segment, rows) };
        }
    }
}

/// Packs scaled queries as [`Block::queries`] wants them, one block after the other.
#[inline(always)]
unsafe fn pack_queries<V: Simd, E: Element>(span: &Span<'_, E>, head: &mut [f32], queries: &mut [f32]) {
    let inputs = span.inputs;
    let (dim, group) = (inputs.head_dim, inputs.group());
    let scale = 1.0 / (dim as f32).sqrt();
    let head = &mut head[..dim];
    let mut first = 0;
    while first < span.rows() {
        let rows = span.block_rows(first);
        let block = &mut queries[first * dim..][..rows * dim];
        for row in 0..rows {
            let token = span.tokens.start + (first + row) / group;
            let index = span.kv_head * group + (first + row) % group;
            // SAFETY: instructions are the caller's promise.
            unsafe { inputs.query::<V>(span.place.row + token, index, head) };
            let mut element = 0;
            while element < dim {
                block[element * rows + row] = head[element] * scale;
                element += 1;
            }
        }
        first += rows;
    }
}

#[inline(always)]
unsafe fn add_to_blocks<V: Simd, E: Element>(
    span: &Span<'_, E>,
    tile: &Tile<E>,
    queries: &[f32],
    into: &mut Rows,
) {
    let group = span.inputs.group();
    let mut row = 0;
    while row < span.rows() {
        let rows = span.block_rows(row);
        let block = Block {
            queries: queries[row * tile.head_dim..][..rows * tile.head_dim].as_ptr(),
            position: span.position(span.tokens.start + row / group),
            heads: group.min(rows),
            window: span.inputs.window,
            max: into.max[row..][..rows].as_mut_ptr(),
            sum: into.sum[row..][..rows].as_mut_ptr(),
            out: into.out[row * tile.value_stride..][..rows * tile.value_stride].as_mut_ptr(),
        };
        // SAFETY: the slices hold the block's rows; the rest is the caller's promise.
        unsafe { add_tile::<V, E>(tile, &block, rows) };
        row += rows;
    }
}

/// Writes the attention of a span to `out`, which has a row of all query heads per token of the step.
///
/// # Safety
/// Nobody else uses these heads of these rows meanwhile.
pub(crate) unsafe fn finish<E: Element>(span: &Span<'_, E>, total: &Rows, out: &Shared<f32>) {
    let inputs = span.inputs;
    let (dim, group) = (inputs.head_dim, inputs.group());
    let stride = dim.next_multiple_of(LANES);
    for row in 0..span.rows() {
        let token = span.place.row + span.tokens.start + row / group;
        let head = token * inputs.heads + span.kv_head * group + row % group;
        // SAFETY: the caller's promise.
        let out = unsafe { out.write(head * dim..(head + 1) * dim) };
        let scale = 1.0 / total.sum[row];
        for (out, value) in out.iter_mut().zip(&total.out[row * stride..]) {
            *out = value * scale;
        }
    }
}
