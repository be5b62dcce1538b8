use models::{Batch, Export, OpenSlot, PageCopy, Score, SequenceStep, StepId};

use super::{Flight, Planned, Row, Scheduler};
use crate::{Event, Goal, Micros, sequence::Sequence, slab::Key};

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

    /// Adds the next `count` tokens of a sequence to the step.
    pub(super) fn add_row(&mut self, key: Key<Sequence>, count: u32, batch: &mut Batch, flight: &mut Flight) {
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
