//! What one step tells the device: one block of words, written on the host, copied in one piece.

use std::ops::Range;

use crate::View;

/// How many entries each list has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub tokens: usize,
    /// Sequences of one token, at rows `0 ..`.
    pub decodes: usize,
    /// Sequences of several tokens.
    pub prefills: usize,
    /// Blocks of the prefill kernel.
    pub works: usize,
    /// Rows that are sampled.
    pub rows: usize,
    /// Rows that are scored.
    pub scores: usize,
    /// How many rows go all the way through the last layer, if not all do: those that are sampled, then those scored.
    pub last: Option<usize>,
    /// Blocks of the prefill kernel that hold such rows.
    pub last_works: usize,
    pub copies: usize,
}

impl Counts {
    /// Of a step in which so many sequences decode.
    pub fn of_decode(rows: usize) -> Self {
        Self { tokens: rows, decodes: rows, rows, ..Self::default() }
    }

    /// At least as many as any step has.
    pub fn most(tokens: usize, slots: usize) -> Self {
        Self {
            tokens,
            decodes: slots,
            prefills: slots,
            works: tokens,
            rows: slots,
            scores: tokens,
            last: None,
            last_works: tokens,
            copies: slots,
        }
    }
}

/// Where each list lies in the block.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub ids: Range<usize>,
    pub token_slots: Range<usize>,
    pub positions: Range<usize>,
    pub places: Range<usize>,
    pub decode_contexts: Range<usize>,
    pub decode_tables: Range<usize>,
    pub tile_starts: Range<usize>,
    pub run_starts: Range<usize>,
    pub prefill_contexts: Range<usize>,
    pub prefill_tables: Range<usize>,
    pub query_starts: Range<usize>,
    pub query_counts: Range<usize>,
    pub works: Range<usize>,
    pub last_works: Range<usize>,
    pub rows: Range<usize>,
    pub row_slots: Range<usize>,
    pub row_positions: Range<usize>,
    pub score_rows: Range<usize>,
    pub score_targets: Range<usize>,
    pub score_tops: Range<usize>,
    pub copies: Range<usize>,
    /// Page tables begin here.
    pub tables: usize,
}

/// Lists start at multiples of this many words: kernels read some of them 16 bytes at a time.
const ALIGNMENT: usize = 4;

impl Layout {
    pub fn new(counts: Counts) -> Self {
        let mut next = 0;
        let mut list = |len: usize| {
            let range = next..next + len;
            next = range.end.next_multiple_of(ALIGNMENT);
            range
        };
        Self {
            ids: list(counts.tokens),
            token_slots: list(counts.tokens),
            positions: list(counts.tokens),
            places: list(counts.tokens),
            decode_contexts: list(counts.decodes),
            decode_tables: list(counts.decodes),
            tile_starts: list(counts.decodes + 1),
            run_starts: list(counts.decodes + 1),
            prefill_contexts: list(counts.prefills),
            prefill_tables: list(counts.prefills),
            query_starts: list(counts.prefills),
            query_counts: list(counts.prefills),
            works: list(2 * counts.works),
            last_works: list(2 * counts.last_works),
            rows: list(counts.rows),
            row_slots: list(counts.rows),
            row_positions: list(counts.rows),
            score_rows: list(counts.scores),
            score_targets: list(counts.scores),
            score_tops: list(counts.scores),
            copies: list(2 * counts.copies),
            tables: list(0).start,
        }
    }

    /// Words before the page tables.
    pub fn words(&self) -> usize {
        self.tables
    }
}

/// The lists on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lists<'a> {
    pub ids: View<'a, u32>,
    pub token_slots: View<'a, u32>,
    pub positions: View<'a, u32>,
    pub places: View<'a, u32>,
    pub decode_contexts: View<'a, u32>,
    pub decode_tables: View<'a, u32>,
    pub tile_starts: View<'a, u32>,
    pub run_starts: View<'a, u32>,
    pub prefill_contexts: View<'a, u32>,
    pub prefill_tables: View<'a, u32>,
    pub query_starts: View<'a, u32>,
    pub query_counts: View<'a, u32>,
    pub works: View<'a, u32>,
    pub last_works: View<'a, u32>,
    pub rows: View<'a, u32>,
    pub row_slots: View<'a, u32>,
    pub row_positions: View<'a, u32>,
    pub score_rows: View<'a, u32>,
    pub score_targets: View<'a, u32>,
    pub score_tops: View<'a, u32>,
    pub copies: View<'a, u32>,
    pub tables: View<'a, u32>,
}

impl<'a> Lists<'a> {
    pub fn new(block: View<'a, u32>, layout: &Layout) -> Self {
        let list = |range: &Range<usize>| block.slice(range.clone());
        Self {
            ids: list(&layout.ids),
            token_slots: list(&layout.token_slots),
            positions: list(&layout.positions),
            places: list(&layout.places),
            decode_contexts: list(&layout.decode_contexts),
            decode_tables: list(&layout.decode_tables),
            tile_starts: list(&layout.tile_starts),
            run_starts: list(&layout.run_starts),
            prefill_contexts: list(&layout.prefill_contexts),
            prefill_tables: list(&layout.prefill_tables),
            query_starts: list(&layout.query_starts),
            query_counts: list(&layout.query_counts),
            works: list(&layout.works),
            last_works: list(&layout.last_works),
            rows: list(&layout.rows),
            row_slots: list(&layout.row_slots),
            row_positions: list(&layout.row_positions),
            score_rows: list(&layout.score_rows),
            score_targets: list(&layout.score_targets),
            score_tops: list(&layout.score_tops),
            copies: list(&layout.copies),
            tables: block.slice(layout.tables..),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_do_not_overlap_and_are_aligned() {
        let layout = Layout::new(Counts {
            tokens: 3,
            decodes: 1,
            prefills: 1,
            works: 1,
            rows: 2,
            scores: 1,
            last: None,
            last_works: 1,
            copies: 1,
        });
        let lists = [
            &layout.ids,
            &layout.tile_starts,
            &layout.run_starts,
            &layout.works,
            &layout.last_works,
            &layout.copies,
        ];
        for pair in lists.windows(2) {
            assert!(pair[0].end <= pair[1].start && pair[1].start % ALIGNMENT == 0);
        }
        assert!(layout.copies.end <= layout.tables);
    }
}
