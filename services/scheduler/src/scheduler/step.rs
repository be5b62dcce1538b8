use models::{Batch, Export, OpenSlot, PageCopy, Score, SequenceStep, StepId};

use super::{Flight, Planned, Row, Scheduler};
use crate::{Event, Goal, Micros, PROMPT_SHARE, QUICK_STEP, sequence::Sequence, slab::Key};

/// What prompts that lack less than a block leave to longer ones beside sequences that are spared: one part of so many.
const LONG_SHARE: u32 = 4;

impl Scheduler {
    /// Fills `batch` with the next step, reusing its buffers. `events` reports starts, and ends by cancel or deadline.
    ///
    /// Every sequence that decodes has its token in every step; prompts share what the budget leaves, in order of
    /// rank.
    pub fn plan(&mut self, now: Micros, batch: &mut Batch, events: &mut Vec<Event>) -> Planned {
        self.end_overdue(now, events);
        if self.in_flight.len() == self.limits.depth {
            return Planned::Blocked;
        }
        self.admit_waiting(now, events);
        batch.closes.clear();
        batch.copies.clear();
        batch.opens.clear();
        batch.sequences.clear();
        batch.tokens.clear();
        batch.pages.clear();
        batch.exports.clear();
        let mut flight = self.scratch.flights.pop().unwrap_or_default();
        self.add_decodes(batch, &mut flight);
        self.add_prefills(batch, &mut flight);
        if flight.rows.is_empty() {
            self.scratch.flights.push(flight);
            return if self.in_flight.is_empty() { Planned::Idle } else { Planned::Blocked };
        }
        self.step = StepId(self.step.0 + 1);
        batch.step = self.step;
        batch.closes.append(&mut self.closing);
        let bound = self.speed.bound(flight.work);
        self.in_flight.push_back(flight);
        Planned::Step { bound }
    }

    /// Tokens of a running sequence that no step has taken up: 1 if it decodes, 0 if steps in flight will end it.
    pub(super) fn missing(&self, sequence: &Sequence) -> u32 {
        let computed = sequence.running.as_ref().map_or(0, |residence| residence.computed);
        sequence.target(&self.runs[sequence.run]).saturating_sub(computed)
    }

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

    fn add_decodes(&mut self, batch: &mut Batch, flight: &mut Flight) {
        let mut at = 0;
        // Preemption only ever takes from behind `at`.
        while let Some(&key) = self.running.get(at) {
            if self.missing(&self.sequences[key]) == 1 && self.reserve_block(key) {
                self.add_row(key, 1, batch, flight);
                flight.work.decodes += 1;
            }
            at += 1;
        }
    }

    /// Sees to it that the sequence has a block for its next token, by preemption of the last in rank if need be.
    /// False if that was the sequence itself.
    fn reserve_block(&mut self, key: Key<Sequence>) -> bool {
        loop {
            let Some(residence) = &mut self.sequences[key].running else { return false };
            if residence.pages.len() as u32 >= self.limits.pages_for(residence.computed + 1) {
                return true;
            }
            if let Some(page) = self.blocks.allocate() {
                residence.pages.push(page);
                continue;
            }
            let Some(&last) = self.running.last() else { return false };
            if last != key || !self.give_way(self.sequences[key].run) {
                self.preempt(last);
            }
        }
    }

    fn add_prefills(&mut self, batch: &mut Batch, flight: &mut Flight) {
        let sparing = self.is_sparing(flight.work.decodes);
        // Long prompts go slowly beside sequences that are spared, and shall not hold up what lacks a few tokens.
        let short = if sparing { self.limits.page_size } else { 0 };
        let mut budget = self.prefill_budget(flight.work.decodes);
        // Output that has to be computed again is of a stream that stands still: such are spared, too.
        let mut first = self.first_budget(flight.work.decodes);
        let is_long = |key: &Key<Sequence>| {
            let sequence = &self.sequences[*key];
            sequence.output.is_empty() && self.missing(sequence) > short
        };
        let kept_for_long = if sparing && self.running.iter().any(is_long) { first / LONG_SHARE } else { 0 };
        let running = 0..self.running.len();
        let turns =
            [true, false].into_iter().flat_map(|is_short| running.clone().map(move |at| (is_short, at)));
        for (is_short, at) in turns {
            let key = self.running[at];
            let sequence = &self.sequences[key];
            let missing = self.missing(sequence);
            if missing <= 1 || is_short != (missing <= short) {
                continue;
            }
            let is_first = sequence.output.is_empty();
            let left = match (is_first, is_short) {
                (true, true) => budget.min(first.saturating_sub(kept_for_long)),
                (true, false) => budget.min(first),
                (false, _) => budget,
            };
            let mut chunk = missing.min(self.config.chunked_prefill_size.max(1)).min(left);
            let run = &self.runs[sequence.run];
            if run.is_scoring() {
                // What is scored is the prompt: no chunk goes on into the output.
                let computed = sequence.target(run) - missing;
                chunk = chunk.min(run.prompt_len() - computed);
            }
            if budget == 0 {
                break;
            }
            if chunk == 0 {
                continue;
            }
            self.add_row(key, chunk, batch, flight);
            flight.work.prefill_tokens += chunk;
            budget -= chunk;
            if is_first {
                first -= chunk;
            }
        }
    }

    /// Adds the next `count` tokens of a sequence to the step.
    fn add_row(&mut self, key: Key<Sequence>, count: u32, batch: &mut Batch, flight: &mut Flight) {
        let sequence = &mut self.sequences[key];
        let run = &mut self.runs[sequence.run];
        let prompt = run.prompt_len();
        let unplanned_output = sequence.remaining_output(run);
        let length = sequence.known(run) + sequence.pending;
        let Some(residence) = &mut sequence.running else { return };
        let (start, end) = (residence.computed, residence.computed + count);
        residence.computed = end;
        let pages = batch.pages.len() as u32;
        batch.pages.extend(residence.pages[..self.limits.pages_for(end) as usize].iter().map(|page| page.0));
        if let Goal::Blocks { from } = run.goal {
            let page_size = self.limits.page_size;
            batch.exports.extend((from.max(start / page_size)..end / page_size).map(|block| Export {
                page: residence.pages[block as usize].0,
                run: run.key.0,
                block,
            }));
        }
        let slot = residence.slot;
        let open = !std::mem::replace(&mut residence.opened, true);
        if let Some(fork) = residence.fork.take() {
            let to = residence.pages[fork.to_block as usize].0;
            batch.copies.push(PageCopy { from: fork.from.0, to });
            // The copy precedes all that this step or a later one may write to the page.
            self.blocks.release(fork.from);
        }
        if open {
            let needs_prompt = run.params.repetition_penalty != 1.0;
            batch.opens.push(OpenSlot {
                slot,
                params: run.params.clone(),
                choice: sequence.choice,
                prompt: if needs_prompt { run.prompt.to_vec() } else { Vec::new() },
                output: sequence.output.clone(),
            });
        }
        // Token `i` is scored by the input before it.
        let (first, last) = (run.score_next.max(start + 1), end.min(prompt - 1));
        let score = (first <= last).then_some(first);
        if score.is_some() {
            run.score_next = last + 1;
        }
        let sample = end == length && unplanned_output > 0;
        let tokens = batch.tokens.len() as u32;
        sequence.copy_tokens(run, start, end, &mut batch.tokens);
        batch.sequences.push(SequenceStep {
            slot,
            tokens: tokens..batch.tokens.len() as u32,
            start,
            pages: pages..batch.pages.len() as u32,
            sample,
            score: score
                .map(|first| Score { from: first - 1 - start, next: run.prompt.get(end as usize).copied() }),
        });
        sequence.pending += u32::from(sample);
        flight.rows.push(Row {
            run: sequence.run,
            sequence: key,
            residence: sequence.residence,
            end,
            sample,
            score,
        });
    }
}
