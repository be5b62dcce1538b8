use std::{cmp::Reverse, collections::BTreeSet};

use super::Scheduler;
use crate::{
    Admitted, EndReason, Event, Goal, Micros, Refusal, Request, RunKey, Usage,
    sequence::{Rank, Run, Sequence},
};

impl Scheduler {
    /// Takes a request in; it waits until a plan finds room for it.
    ///
    /// # Errors
    /// Nothing was taken in; the [`Refusal`] says why, with both numbers where it is about a bound.
    pub fn admit(&mut self, mut request: Request) -> Result<Admitted, Refusal> {
        if matches!(request.goal, Goal::Blocks { .. }) {
            request.choices.truncate(1);
            request.choices.iter_mut().for_each(|choice| choice.output.clear());
            (request.max_tokens, request.score_prompt_from) = (0, None);
        }
        let limit = self.examine(&request)?;
        let Request { run: key, goal, prompt, choices, params, priority, deadline, root, arrived, .. } =
            request;
        let tokens = prompt.len() as u32;
        let mut run = Run {
            key,
            goal,
            parked: goal == Goal::OutputOnceLanded,
            hold: Vec::new(),
            hashes: Vec::new(),
            limit,
            score_next: request.score_prompt_from.map_or(tokens, |from| from.max(1).min(tokens)),
            started: false,
            choices: Vec::with_capacity(choices.len()),
            usage: Usage { prompt_tokens: tokens, ..Usage::default() },
            prompt,
            params,
            root,
            arrived,
            deadline,
        };
        if self.blocks.is_caching() {
            run.hashes.reserve_exact(run.prompt.len() / self.limits.page_size as usize);
            let mut parent = root;
            for block in run.prompt.chunks_exact(self.limits.page_size as usize) {
                parent = self.config.cluster_key.child(parent, block, &[]);
                run.hashes.push(parent);
            }
        }
        self.admissions += 1;
        let run_key = self.runs.insert(run);
        for (order, choice) in choices.into_iter().enumerate() {
            let rank = Rank {
                priority: Reverse(priority),
                arrived,
                admission: self.admissions,
                choice: order as u32,
            };
            let run = &mut self.runs[run_key];
            run.usage.output_tokens += choice.output.len() as u32;
            let end = match run.stop(&choice.output) {
                Some(stop) => Some(EndReason::Stop(stop)),
                None => (!run.has_work(&choice.output, order == 0)).then_some(EndReason::Length),
            };
            let mut sequence = Sequence {
                run: run_key,
                choice: choice.index,
                rank,
                output: choice.output,
                tail_hashes: Vec::new(),
                pending: 0,
                residence: 0,
                running: None,
            };
            if self.blocks.is_caching() {
                let blocks = sequence.known(run) / self.limits.page_size;
                let (page_size, key) = (self.limits.page_size, &self.config.cluster_key);
                sequence.hash_blocks(run, blocks, page_size, key, &mut self.scratch.tokens);
            }
            let sequence = self.sequences.insert(sequence);
            run.choices.push(sequence);
            if goal != Goal::OutputOnceLanded {
                self.waiting.insert(rank, sequence);
            }
            self.ended_at_intake.extend(end.map(|reason| (sequence, reason)));
        }
        self.by_key.insert(key, run_key);
        self.deadlines.extend(deadline.map(|deadline| (deadline, key)));
        self.queued += 1;
        let (held_blocks, wanted_blocks) = self.hold_cached(run_key);
        let pending_prefill_tokens = self.pending_prefill_tokens();
        Ok(Admitted { queued: self.queued, pending_prefill_tokens, held_blocks, wanted_blocks })
    }

    /// Checks a request and returns how many output tokens its choices may have.
    fn examine(&self, request: &Request) -> Result<u32, Refusal> {
        if self.by_key.contains_key(&request.run) {
            return Err(Refusal::DuplicateRun(request.run));
        }
        if request.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if request.choices.is_empty() {
            return Err(Refusal::NoChoices);
        }
        let mut indices = BTreeSet::new();
        if let Some(twice) = request.choices.iter().find(|choice| !indices.insert(choice.index)) {
            return Err(Refusal::DuplicateChoice(twice.index));
        }
        let vocab_size = self.limits.vocab_size;
        let outputs = request.choices.iter().flat_map(|choice| choice.output.iter());
        if let Some(&token) = request.prompt.iter().chain(outputs).find(|&&token| token >= vocab_size) {
            return Err(Refusal::UnknownToken { token, vocab_size });
        }
        request.params.check(&self.limits.sampling)?;
        if matches!(request.goal, Goal::Blocks { .. }) {
            let (tokens, page_size) = (request.prompt.len() as u32, self.limits.page_size);
            if !self.blocks.is_caching() || !tokens.is_multiple_of(page_size) {
                return Err(Refusal::NoBlocks { tokens, page_size });
            }
        }
        let context = self.limits.context;
        let longest_output = request.choices.iter().map(|choice| choice.output.len()).max().unwrap_or(0);
        let prompt = request.prompt.len() as u64;
        let tokens = prompt + longest_output as u64;
        if tokens > u64::from(context) || prompt + u64::from(request.max_tokens.min(1)) > u64::from(context) {
            return Err(Refusal::TooLong { tokens, context });
        }
        let limit = request.max_tokens.min(context - prompt as u32);
        // The KV of the last token is never computed.
        let needed_tokens = prompt + u64::from(limit.saturating_sub(1));
        let capacity_tokens = self.capacity_tokens();
        if needed_tokens > capacity_tokens {
            return Err(Refusal::NeverFits { needed_tokens, capacity_tokens });
        }
        if self.queued >= self.config.max_queued_requests {
            return Err(Refusal::QueueFull { queued: self.queued, limit: self.config.max_queued_requests });
        }
        Ok(limit)
    }

    /// Ends one choice of a run, or all of them; takes effect in the next plan, whose events report the end. False if
    /// there is nothing to end.
    pub fn cancel(&mut self, run: RunKey, choice: Option<u32>) -> bool {
        let Some(&key) = self.by_key.get(&run) else { return false };
        let mut choices = self.runs[key].choices.iter();
        let found = choices.any(|&key| choice.is_none_or(|choice| self.sequences[key].choice == choice));
        if found {
            self.cancels.push((run, choice));
        }
        found
    }

    /// Carries out what came between two plans: ends known at intake, cancels, deadlines.
    pub(super) fn end_overdue(&mut self, now: Micros, events: &mut Vec<Event>) {
        for (sequence, reason) in std::mem::take(&mut self.ended_at_intake) {
            if self.sequences.get(sequence).is_some() {
                self.end(sequence, reason, events);
            }
        }
        for (run, choice) in std::mem::take(&mut self.cancels) {
            self.end_choices(run, choice, EndReason::Cancelled, events);
        }
        while let Some(&(_, run)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            self.end_choices(run, None, EndReason::DeadlineExceeded, events);
        }
    }

    pub(super) fn end_choices(
        &mut self,
        run: RunKey,
        choice: Option<u32>,
        reason: EndReason,
        events: &mut Vec<Event>,
    ) {
        let Some(&key) = self.by_key.get(&run) else { return };
        for sequence in self.runs[key].choices.clone() {
            if choice.is_none_or(|choice| self.sequences[sequence].choice == choice) {
                self.end(sequence, reason, events);
            }
        }
    }
}
