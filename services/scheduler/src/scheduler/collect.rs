use models::{Batch, Outputs, Sampled, Scored};

use super::{Row, Scheduler};
use crate::{EndReason, Event};

impl Scheduler {
    /// Takes the outputs of the oldest step in flight: tokens, scores and ends.
    ///
    /// Tokens of sequences that have ended meanwhile are dropped.
    ///
    /// # Panics
    /// If no step is in flight, or the outputs are not those of its batch.
    pub fn complete(&mut self, outputs: Outputs, events: &mut Vec<Event>) {
        let mut flight = self.in_flight.pop_front().expect("a step is in flight");
        self.speed.observe(flight.work, outputs.elapsed);
        let (mut sampled, mut scored) = (outputs.sampled.into_iter(), outputs.scored.into_iter());
        for row in &flight.rows {
            if let Some(first) = row.score {
                let scored = scored.next().expect("one score per scoring sequence");
                self.report_scores(row, first, scored, events);
            }
            let token = row.sample.then(|| sampled.next().expect("one token per sampling sequence"));
            if self.sequences.get(row.sequence).is_none() {
                continue;
            }
            // What it has computed is no better than its logits.
            if token.as_ref().is_some_and(|token| !token.finite) {
                self.end_choices(self.runs[row.run].key, None, EndReason::NotFinite, events);
                continue;
            }
            self.keep_blocks(row);
            if self.runs[row.run].is_for_blocks() {
                if self.sequences[row.sequence].residence == row.residence {
                    self.note_blocks(row.sequence, events);
                }
                continue;
            }
            match token {
                Some(token) => self.put_out(row, token, events),
                None => self.end_if_scored(row, events),
            }
        }
        flight.rows.clear();
        flight.work = Default::default();
        self.scratch.flights.push(flight);
    }

    /// Undoes the newest planned step, whose `batch` the executor refused to start: the runs in it end as failed.
    ///
    /// # Panics
    /// If no step is in flight.
    pub fn reject(&mut self, batch: &Batch, events: &mut Vec<Event>) {
        let flight = self.in_flight.pop_back().expect("a step is in flight");
        // The executor knows neither what was opened nor what was closed.
        for row in &flight.rows {
            if let Some(sequence) = self.sequences.get(row.sequence)
                && let Some(residence) = &sequence.running
                && batch.opens.iter().any(|open| open.slot == residence.slot)
                && let Some(residence) = &mut self.sequences[row.sequence].running
            {
                residence.opened = false;
            }
        }
        self.closing.extend_from_slice(&batch.closes);
        for row in &flight.rows {
            if let Some(run) = self.runs.get(row.run) {
                self.end_choices(run.key, None, EndReason::Failed, events);
            }
        }
    }

    fn report_scores(&self, row: &Row, first: u32, scored: Scored, events: &mut Vec<Event>) {
        if let Some(run) = self.runs.get(row.run) {
            events.push(Event::PromptScored { run: run.key, first, tokens: scored.tokens });
        }
    }

    /// Gives the blocks that the row has filled to the cache.
    fn keep_blocks(&mut self, row: &Row) {
        if !self.blocks.is_caching() {
            return;
        }
        let sequence = &mut self.sequences[row.sequence];
        let full = row.end / self.limits.page_size;
        let inserted = match &sequence.running {
            Some(residence) if sequence.residence == row.residence => residence.inserted,
            _ => return,
        };
        let run = &self.runs[sequence.run];
        let (page_size, key) = (self.limits.page_size, &self.config.cluster_key);
        sequence.hash_blocks(run, full, page_size, key, &mut self.scratch.tokens);
        for index in inserted..full {
            let (parent, hash) = (sequence.parent(run, index), sequence.hash(run, index));
            let Some(residence) = &mut sequence.running else { return };
            let page = &mut residence.pages[index as usize];
            *page = self.blocks.insert(parent, hash, index, *page);
            residence.inserted = index + 1;
        }
    }

    fn put_out(&mut self, row: &Row, sampled: Sampled, events: &mut Vec<Event>) {
        let sequence = &mut self.sequences[row.sequence];
        let run = &mut self.runs[row.run];
        let position = sequence.output.len() as u32;
        sequence.pending -= 1;
        sequence.output.push(sampled.token);
        run.usage.output_tokens += 1;
        events.push(Event::Token {
            run: run.key,
            choice: sequence.choice,
            position,
            token: sampled.token,
            logprob: sampled.logprob,
            top: sampled.top,
        });
        let end = match run.stop(&sequence.output) {
            Some(stop) => Some(EndReason::Stop(stop)),
            None => (position + 1 >= run.limit).then_some(EndReason::Length),
        };
        if let Some(reason) = end {
            self.end(row.sequence, reason, events);
        }
    }

    /// A choice that was only here for the prompt's scores ends with the last of them.
    fn end_if_scored(&mut self, row: &Row, events: &mut Vec<Event>) {
        let sequence = &self.sequences[row.sequence];
        let run = &self.runs[row.run];
        if sequence.output.len() as u32 >= run.limit && row.end + 1 >= run.prompt_len() {
            self.end(row.sequence, EndReason::Length, events);
        }
    }
}
