//! What a step is: the order of its rows, and the words that tell the device of them.

use models::{Batch, Score, SequenceStep, SlotId};

use super::{
    block::{Counts, Layout},
    buffers::LOGIT_ROWS,
    slots::Slots,
};
use crate::ops::{DecodeShare, PREFILL_ROWS};

/// Marks rows and tokens that only fill up a captured batch.
const NOTHING: u32 = u32::MAX;

/// A sequence that reports, and how many most likely tokens.
pub(super) type Reporter = (SlotId, Option<u8>);

/// A step, decided: the order of its rows and what comes back.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub counts: Counts,
    /// Sequences in the order of their rows: those of one token first.
    order: Vec<usize>,
    /// First row of each sequence of the batch.
    first_rows: Vec<usize>,
    /// Tiles of the decode kernel.
    pub tiles: usize,
    /// In batch order.
    pub sampled: Vec<Reporter>,
    /// In batch order, with the number of tokens scored.
    pub scored: Vec<(Reporter, usize)>,
    /// Sequences of several tokens, while they are told from the others.
    prefills: Vec<usize>,
    works: Vec<Work>,
}

/// A block of the prefill kernel; those with the most keys are the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Work {
    position: usize,
    /// Among the sequences of several tokens.
    sequence: usize,
    /// First token of the sequence.
    first: usize,
    /// Holds a token that is sampled or scored.
    asked: bool,
}

impl Work {
    fn pair(&self) -> [u32; 2] {
        [self.sequence as u32, self.first as u32]
    }
}

impl Plan {
    /// Decides a step, in place of the one before. `max_tiles`: what the decode kernel has room for; sequences beyond it go to
    /// the prefill kernel, which computes the same bits.
    pub fn decide(&mut self, batch: &Batch, slots: &Slots, max_tiles: usize, share: DecodeShare) {
        let Self { counts, order, first_rows, tiles, sampled, scored, prefills, works: _ } = self;
        (*counts, *tiles) = (Counts::default(), 0);
        for list in [&mut *order, &mut *prefills, &mut *first_rows] {
            list.clear();
        }
        first_rows.resize(batch.sequences.len(), 0);
        sampled.clear();
        scored.clear();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let own = share.tiles(sequence.start as usize + 1);
            if sequence.tokens.len() == 1 && *tiles + own <= max_tiles {
                *tiles += own;
                order.push(index);
            } else {
                prefills.push(index);
                let works = sequence.tokens.len().div_ceil(PREFILL_ROWS);
                counts.works += works;
                counts.last_works += works - first_asked_work(sequence);
            }
            let reporter = (sequence.slot, slots.get(sequence.slot).and_then(|slot| slot.top));
            if sequence.sample {
                sampled.push(reporter);
            }
            if let Some(score) = sequence.score {
                scored.push((reporter, scored_tokens(sequence.tokens.len(), score)));
            }
        }
        counts.decodes = order.len();
        counts.prefills = prefills.len();
        order.append(prefills);
        for &index in &*order {
            first_rows[index] = counts.tokens;
            counts.tokens += batch.sequences[index].tokens.len();
        }
        counts.rows = sampled.len();
        counts.scores = scored.iter().map(|(_, count)| count).sum();
        counts.copies = batch.copies.len();
        let last = counts.rows + counts.scores;
        counts.last = Some(last).filter(|&last| last < counts.tokens && last <= LOGIT_ROWS);
    }

    /// Whether the step has rows, only decodes and samples every one, so that a graph can replay it.
    pub fn is_plain_decode(&self) -> bool {
        let Counts { tokens, decodes, prefills, rows, scores, copies, .. } = self.counts;
        tokens > 0 && tokens == decodes && rows == tokens && prefills + scores + copies == 0
    }

    /// Words that the block takes with a given layout.
    pub fn words(&self, batch: &Batch, layout: &Layout) -> usize {
        layout.words() + batch.pages.len()
    }

    /// Writes the block. `slots` notes what is sampled. Where the layout has more room than the step has rows, the rest
    /// is filled with rows that do nothing.
    pub fn write(
        &mut self,
        block: &mut [u32],
        layout: &Layout,
        batch: &Batch,
        slots: &mut Slots,
        page_size: u32,
        share: DecodeShare,
    ) {
        self.write_padding(block, layout);
        block[layout.tables..][..batch.pages.len()].copy_from_slice(&batch.pages);
        self.works.clear();
        let (mut row, mut tiles, mut runs) = (0, 0, 0);
        for (number, &index) in self.order.iter().enumerate() {
            let sequence = &batch.sequences[index];
            let tokens = &batch.tokens[sequence.tokens.start as usize..sequence.tokens.end as usize];
            let pages = &batch.pages[sequence.pages.start as usize..sequence.pages.end as usize];
            for (offset, &token) in tokens.iter().enumerate() {
                let position = sequence.start + offset as u32;
                let place = pages[(position / page_size) as usize] * page_size + position % page_size;
                let at = row + offset;
                block[layout.ids.start + at] = token;
                block[layout.token_slots.start + at] = sequence.slot.0;
                block[layout.positions.start + at] = position;
                block[layout.places.start + at] = place;
            }
            let context = sequence.start + tokens.len() as u32;
            if number < self.counts.decodes {
                block[layout.decode_contexts.start + number] = context;
                block[layout.decode_tables.start + number] = sequence.pages.start;
                let own = share.tiles(context as usize);
                tiles += own as u32;
                runs += share.runs(own, self.tiles) as u32;
                block[layout.tile_starts.start + number + 1] = tiles;
                block[layout.run_starts.start + number + 1] = runs;
            } else {
                let number = number - self.counts.decodes;
                block[layout.prefill_contexts.start + number] = context;
                block[layout.prefill_tables.start + number] = sequence.pages.start;
                block[layout.query_starts.start + number] = row as u32;
                block[layout.query_counts.start + number] = tokens.len() as u32;
                let asked = first_asked_work(sequence) * PREFILL_ROWS;
                let firsts = (0..tokens.len()).step_by(PREFILL_ROWS);
                self.works.extend(firsts.map(|first| Work {
                    position: sequence.start as usize + first,
                    sequence: number,
                    first,
                    asked: first >= asked,
                }));
            }
            row += tokens.len();
        }
        // blocks with the most keys first, so that none of them starts last
        self.works.sort_unstable_by(|a, b| b.cmp(a));
        write_pairs(&mut block[layout.works.clone()], self.works.iter().map(Work::pair));
        let asked = self.works.iter().filter(|work| work.asked).map(Work::pair);
        write_pairs(&mut block[layout.last_works.clone()], asked);
        block[layout.tile_starts.start + self.counts.decodes + 1..layout.tile_starts.end].fill(tiles);
        block[layout.run_starts.start + self.counts.decodes + 1..layout.run_starts.end].fill(runs);
        self.write_rows(block, layout, batch, slots);
        write_pairs(&mut block[layout.copies.clone()], batch.copies.iter().map(|copy| [copy.from, copy.to]));
    }

    /// Fills every list with entries that do nothing.
    pub fn write_padding(&self, block: &mut [u32], layout: &Layout) {
        block[..layout.words()].fill(0);
        block[layout.places.clone()].fill(NOTHING);
        block[layout.row_slots.clone()].fill(NOTHING);
    }

    fn write_rows(&self, block: &mut [u32], layout: &Layout, batch: &Batch, slots: &mut Slots) {
        let (mut rows, mut scores) = (0, 0);
        for (sequence, &first) in batch.sequences.iter().zip(&self.first_rows) {
            let tokens = &batch.tokens[sequence.tokens.start as usize..sequence.tokens.end as usize];
            if let Some(score) = sequence.score {
                let top = slots.get(sequence.slot).and_then(|slot| slot.top).unwrap_or(0);
                for token in score.from as usize..score.from as usize + scored_tokens(tokens.len(), score) {
                    let target = tokens.get(token + 1).copied().or(score.next).unwrap_or(0);
                    block[layout.score_rows.start + scores] = (first + token) as u32;
                    block[layout.score_targets.start + scores] = target;
                    block[layout.score_tops.start + scores] = top.into();
                    scores += 1;
                }
            }
            if sequence.sample {
                block[layout.rows.start + rows] = (first + tokens.len() - 1) as u32;
                block[layout.row_slots.start + rows] = sequence.slot.0;
                block[layout.row_positions.start + rows] = slots.sample(sequence.slot);
                rows += 1;
            }
        }
    }
}

fn write_pairs(list: &mut [u32], pairs: impl Iterator<Item = [u32; 2]>) {
    for (place, pair) in list.chunks_exact_mut(2).zip(pairs) {
        place.copy_from_slice(&pair);
    }
}

/// The first block of the prefill kernel that holds a token of the sequence which is sampled or scored; how many blocks it
/// has, if none is.
fn first_asked_work(sequence: &SequenceStep) -> usize {
    let tokens = sequence.tokens.len();
    let scored = sequence.score.filter(|&score| scored_tokens(tokens, score) > 0);
    let first = match scored {
        Some(score) => Some(score.from as usize),
        None => sequence.sample.then(|| tokens - 1),
    };
    first.map_or(tokens.div_ceil(PREFILL_ROWS), |first| first / PREFILL_ROWS)
}

/// Tokens of a sequence that are scored.
fn scored_tokens(tokens: usize, score: Score) -> usize {
    let last = if score.next.is_some() { tokens } else { tokens - 1 };
    last.saturating_sub(score.from as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_of_the_last_layer_begins_with_the_first_token_that_is_asked_for() {
        let step = |tokens, sample, score| SequenceStep {
            slot: SlotId(0),
            tokens: 0..tokens,
            start: 0,
            pages: 0..0,
            sample,
            score,
        };
        let score = |from, next| Some(Score { from, next });
        assert_eq!(first_asked_work(&step(300, true, None)), 2);
        assert_eq!(first_asked_work(&step(256, true, None)), 1);
        assert_eq!(first_asked_work(&step(300, false, None)), 3);
        assert_eq!(first_asked_work(&step(300, true, score(127, None))), 0);
        assert_eq!(first_asked_work(&step(300, false, score(299, Some(7)))), 2);
        assert_eq!(first_asked_work(&step(300, false, score(299, None))), 3);
    }

    #[test]
    fn the_last_token_is_scored_only_if_its_follower_is_known() {
        assert_eq!(scored_tokens(5, Score { from: 0, next: None }), 4);
        assert_eq!(scored_tokens(5, Score { from: 2, next: Some(7) }), 3);
        assert_eq!(scored_tokens(5, Score { from: 5, next: None }), 0);
    }
}
