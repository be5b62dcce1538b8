//! Whether a batch keeps the contract of [`Batch`]. Nothing is changed before all of it has been checked.

use crate::{Batch, ExecutorSpec, OpenSlot, PLACEHOLDER, PageCopy, SequenceStep, SlotId, TokenId};

/// What an executor's slot holds between batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    Free,
    /// A sequence for which nothing has been sampled yet.
    Open,
    /// A sequence with a sampled token, for which a placeholder may stand.
    Sampled,
}

/// Checks batches; remembers only what it needs to do so without allocating.
#[derive(Debug)]
pub struct BatchChecker {
    /// For each page, which sequence of the batch writes it.
    writers: Vec<Mark>,
    /// For each page, the batch that last copied to it.
    copied_to: Vec<u64>,
    /// For each slot, what the batch has done with it.
    slots: Vec<SlotMark>,
    /// Number of the batch; marks of others do not count.
    batch: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    batch: u64,
    sequence: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct SlotMark {
    closed: u64,
    opened: u64,
    stepped: u64,
}

type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl BatchChecker {
    pub fn new(spec: &ExecutorSpec) -> Self {
        Self {
            writers: vec![Mark::default(); spec.pages as usize],
            copied_to: vec![0; spec.pages as usize],
            slots: vec![SlotMark::default(); spec.slots as usize],
            batch: 0,
        }
    }

    /// `state` tells what a slot below [`ExecutorSpec::slots`] holds before the batch.
    ///
    /// # Errors
    /// What breaks the contract, and where.
    pub fn check(
        &mut self,
        batch: &Batch,
        spec: &ExecutorSpec,
        state: impl Fn(SlotId) -> SlotState,
    ) -> Verdict {
        self.batch += 1;
        for &slot in &batch.closes {
            self.check_close(slot, spec, &state)?;
        }
        self.check_copies(&batch.copies, spec)?;
        for export in &batch.exports {
            ensure(export.page < spec.pages, || format!("exports page {} of {}", export.page, spec.pages))?;
        }
        for open in &batch.opens {
            self.check_open(open, spec, &state)?;
        }
        let mut tokens = 0u64;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            self.check_sequence(index as u32, sequence, batch, spec, &state)?;
            tokens += u64::from(sequence.tokens.end - sequence.tokens.start);
        }
        ensure(tokens <= spec.max_batch_tokens.into(), || {
            format!("{tokens} input tokens are more than {}", spec.max_batch_tokens)
        })?;
        self.check_shared_pages(batch, spec)
    }

    fn check_close(
        &mut self,
        slot: SlotId,
        spec: &ExecutorSpec,
        state: &impl Fn(SlotId) -> SlotState,
    ) -> Verdict {
        ensure(slot.0 < spec.slots && state(slot) != SlotState::Free, || {
            format!("closes slot {}, which is not open", slot.0)
        })?;
        let mark = &mut self.slots[slot.0 as usize];
        ensure(mark.closed != self.batch, || format!("closes slot {} twice", slot.0))?;
        mark.closed = self.batch;
        Ok(())
    }

    fn check_copies(&mut self, copies: &[PageCopy], spec: &ExecutorSpec) -> Verdict {
        for copy in copies {
            for page in [copy.from, copy.to] {
                ensure(page < spec.pages, || format!("copy names page {page} of {}", spec.pages))?;
            }
            let last = std::mem::replace(&mut self.copied_to[copy.to as usize], self.batch);
            ensure(last != self.batch, || format!("page {} is copied to twice", copy.to))?;
        }
        match copies.iter().find(|copy| self.copied_to[copy.from as usize] == self.batch) {
            Some(copy) => Err(format!("page {} is copied from and to", copy.from)),
            None => Ok(()),
        }
    }

    fn check_open(
        &mut self,
        open: &OpenSlot,
        spec: &ExecutorSpec,
        state: &impl Fn(SlotId) -> SlotState,
    ) -> Verdict {
        let slot = open.slot.0;
        ensure(slot < spec.slots, || format!("opens slot {slot} of {}", spec.slots))?;
        let mark = &mut self.slots[slot as usize];
        let free = state(open.slot) == SlotState::Free || mark.closed == self.batch;
        ensure(free && mark.opened != self.batch, || format!("opens slot {slot}, which is open"))?;
        mark.opened = self.batch;
        open.params.check(&spec.sampling).map_err(|wrong| format!("slot {slot}: {wrong}"))?;
        let mut ids = open.prompt.iter().chain(&open.output);
        ensure(ids.all(|&token| token < spec.vocab_size), || {
            format!("slot {slot} has a token beyond the vocabulary of {}", spec.vocab_size)
        })
    }

    fn check_sequence(
        &mut self,
        index: u32,
        sequence: &SequenceStep,
        batch: &Batch,
        spec: &ExecutorSpec,
        state: &impl Fn(SlotId) -> SlotState,
    ) -> Verdict {
        let slot = sequence.slot.0;
        ensure(slot < spec.slots, || format!("steps slot {slot} of {}", spec.slots))?;
        let mark = &mut self.slots[slot as usize];
        let kept = if mark.closed == self.batch { SlotState::Free } else { state(sequence.slot) };
        ensure(kept != SlotState::Free || mark.opened == self.batch, || {
            format!("steps slot {slot}, which is not open")
        })?;
        ensure(mark.stepped != self.batch, || format!("steps slot {slot} twice"))?;
        mark.stepped = self.batch;
        let tokens = batch
            .tokens
            .get(sequence.tokens.start as usize..sequence.tokens.end as usize)
            .filter(|tokens| !tokens.is_empty())
            .ok_or_else(|| format!("slot {slot} has no tokens in the batch"))?;
        check_tokens(slot, tokens, kept == SlotState::Sampled, spec)?;
        let end = u64::from(sequence.start) + tokens.len() as u64;
        ensure(end <= spec.context_length.into(), || {
            format!("slot {slot} reaches {end} tokens, more than {}", spec.context_length)
        })?;
        let pages = batch
            .pages
            .get(sequence.pages.start as usize..sequence.pages.end as usize)
            .filter(|pages| pages.len() as u64 * u64::from(spec.page_size) >= end)
            .ok_or_else(|| format!("slot {slot} has no page table for {end} positions"))?;
        if let Some(page) = pages.iter().find(|&&page| page >= spec.pages) {
            return Err(format!("slot {slot} uses page {page} of {}", spec.pages));
        }
        let written =
            (sequence.start / spec.page_size) as usize..end.div_ceil(spec.page_size.into()) as usize;
        for &page in &pages[written] {
            let writer = &mut self.writers[page as usize];
            ensure(writer.batch != self.batch, || format!("page {page} is written twice"))?;
            *writer = Mark { batch: self.batch, sequence: index };
        }
        if let Some(score) = sequence.score {
            ensure(score.from as usize <= tokens.len(), || {
                format!("slot {slot} is scored from {} of {}", score.from, tokens.len())
            })?;
            ensure(score.next.is_none_or(|next| next < spec.vocab_size), || {
                format!("slot {slot} is scored for a token beyond the vocabulary of {}", spec.vocab_size)
            })?;
        }
        Ok(())
    }

    /// A page that one sequence writes is used by no other.
    fn check_shared_pages(&self, batch: &Batch, spec: &ExecutorSpec) -> Verdict {
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let read = sequence.start.div_ceil(spec.page_size) as usize;
            let pages = &batch.pages[sequence.pages.start as usize..sequence.pages.end as usize];
            for &page in &pages[..read] {
                let writer = self.writers[page as usize];
                ensure(writer.batch != self.batch || writer.sequence == index as u32, || {
                    format!("page {page} of slot {} is written by another", sequence.slot.0)
                })?;
            }
        }
        Ok(())
    }
}

/// `sampled`: a placeholder has a meaning.
fn check_tokens(slot: u32, tokens: &[TokenId], sampled: bool, spec: &ExecutorSpec) -> Verdict {
    if tokens == [PLACEHOLDER] {
        return ensure(sampled, || format!("slot {slot} has sampled nothing that a placeholder stands for"));
    }
    match tokens.iter().find(|&&token| token >= spec.vocab_size) {
        Some(&PLACEHOLDER) => Err(format!("slot {slot} has a placeholder among several tokens")),
        Some(token) => {
            Err(format!("slot {slot} has token {token}, beyond the vocabulary of {}", spec.vocab_size))
        }
        None => Ok(()),
    }
}
