//! What a step computes of prompts, and of output that has to be computed again.

use models::Batch;

use super::{Flight, Scheduler};
use crate::{PROMPT_SHARE, QUICK_STEP, sequence::Sequence, slab::Key};

/// What prompts that lack less than a block leave to longer ones beside sequences that are spared: one part of so many.
const LONG_SHARE: u32 = 4;

/// What a sequence lacks.
struct Prefill {
    /// Tokens of it that one step may take.
    chunk: u32,
    is_short: bool,
    /// Nothing was put out yet.
    is_first: bool,
}

/// Prompt tokens that a step has left.
struct Left {
    all: u32,
    /// Of these, for sequences that have put out nothing yet. Output that has to be computed again is of a stream that
    /// stands still: such are spared, too.
    first: u32,
    /// Of `first`, what short prompts leave to long ones.
    kept_for_long: u32,
}

impl Left {
    /// Takes as many as `prefill` may have.
    fn take(&mut self, prefill: &Prefill) -> u32 {
        if !prefill.is_first {
            let chunk = prefill.chunk.min(self.all);
            self.all -= chunk;
            return chunk;
        }
        let kept = if prefill.is_short { self.kept_for_long } else { 0 };
        let chunk = prefill.chunk.min(self.all).min(self.first.saturating_sub(kept));
        self.all -= chunk;
        self.first -= chunk;
        chunk
    }
}

impl Scheduler {
    /// Prompt tokens that a step may carry beside `decodes` sequences that decode.
    pub(super) fn prefill_budget(&self, decodes: u32) -> u32 {
        let in_time = self.speed.prefill_budget(decodes, self.config.step_target);
        in_time
            .min(self.config.max_prefill_tokens.max(1))
            .min(self.limits.step_tokens.saturating_sub(decodes))
            .min(self.mixed_budget(decodes))
    }

    /// What those who decode concede to prompts, so that the next token is not long in coming.
    fn mixed_budget(&self, decodes: u32) -> u32 {
        let Some(least) = self.config.mixed_step_tokens.filter(|_| decodes > 0) else { return u32::MAX };
        let unit = (least / 2).max(1);
        let present = (self.running.len() + self.waiting.len()).min(self.limits.running as usize) as u32;
        let fair =
            decodes.saturating_add(present.saturating_mul(PROMPT_SHARE)).div_ceil(unit).saturating_mul(unit);
        let quick =
            self.speed.prefill_fits(decodes, QUICK_STEP).unwrap_or(0).saturating_add(decodes) / unit * unit;
        least.max(fair).max(quick).saturating_sub(decodes).max(1)
    }

    /// Prompt tokens beside `decodes` sequences for such that have put out nothing yet.
    fn first_budget(&self, decodes: u32) -> u32 {
        if self.is_sparing(decodes) { self.speed.sparing_budget(self.config.step_stretch) } else { u32::MAX }
    }

    pub(super) fn is_sparing(&self, decodes: u32) -> bool {
        self.spares && decodes > 0
    }

    /// Adds chunks of what running sequences lack, in order of rank; of short ones first: long prompts go slowly beside
    /// sequences that are spared, and shall not hold up what lacks a few tokens.
    pub(super) fn add_prefills(&mut self, batch: &mut Batch, flight: &mut Flight) {
        let decodes = flight.work.decodes;
        let short = if self.is_sparing(decodes) { self.limits.page_size } else { 0 };
        let first = self.first_budget(decodes);
        let is_long = |prefill: Prefill| prefill.is_first && !prefill.is_short;
        let any_long = || self.running.iter().any(|&key| self.prefill(key, short).is_some_and(is_long));
        let kept_for_long = if short > 0 && any_long() { first / LONG_SHARE } else { 0 };
        let mut left = Left { all: self.prefill_budget(decodes), first, kept_for_long };
        for is_short in [true, false] {
            for at in 0..self.running.len() {
                if left.all == 0 {
                    return;
                }
                let key = self.running[at];
                let prefill = self.prefill(key, short).filter(|prefill| prefill.is_short == is_short);
                let chunk = prefill.map_or(0, |prefill| left.take(&prefill));
                if chunk > 0 {
                    self.add_row(key, chunk, batch, flight);
                    flight.work.prefill_tokens += chunk;
                }
            }
        }
    }

    /// What a running sequence lacks, if that is more than its next token; up to `short` tokens are short.
    fn prefill(&self, key: Key<Sequence>, short: u32) -> Option<Prefill> {
        let sequence = &self.sequences[key];
        let missing = self.missing(sequence);
        if missing <= 1 {
            return None;
        }
        let run = &self.runs[sequence.run];
        let mut chunk = missing.min(self.config.chunked_prefill_size.max(1));
        if run.is_scoring() {
            // What is scored is the prompt: no chunk goes on into the output.
            let computed = sequence.target(run) - missing;
            chunk = chunk.min(run.prompt_len() - computed);
        }
        Some(Prefill { chunk, is_short: missing <= short, is_first: sequence.output.is_empty() })
    }
}
