//! Whether a batch keeps the executor's contract. Nothing is changed before all of it has been checked.

use std::collections::{HashMap, HashSet};

use models::{Batch, ExecutorSpec, Logprobs, OpenSlot, PLACEHOLDER, SequenceStep};

use super::slots::{MAX_BIAS, MAX_STOPS, Slots};
use crate::ops::MAX_TOP;

type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub(super) fn check(batch: &Batch, spec: &ExecutorSpec, slots: &Slots) -> Verdict {
    let mut closed = HashSet::new();
    for &slot in &batch.closes {
        ensure(slots.get(slot).is_some(), || format!("closes slot {}, which is not open", slot.0))?;
        ensure(closed.insert(slot), || format!("closes slot {} twice", slot.0))?;
    }
    check_copies(batch, spec)?;
    for export in &batch.exports {
        ensure(export.page < spec.pages, || format!("exports page {} of {}", export.page, spec.pages))?;
    }
    let mut opened = HashSet::new();
    for open in &batch.opens {
        let slot = open.slot;
        ensure((slot.0 as usize) < slots.len(), || format!("opens slot {} of {}", slot.0, slots.len()))?;
        let free = (slots.get(slot).is_none() || closed.contains(&slot)) && opened.insert(slot);
        ensure(free, || format!("opens slot {}, which is open", slot.0))?;
        check_open(open, spec)?;
    }
    let (mut stepped, mut writers, mut tokens) = (HashSet::new(), HashMap::new(), 0u64);
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let slot = sequence.slot;
        let kept = slots.get(slot).filter(|_| !closed.contains(&slot));
        ensure(kept.is_some() || opened.contains(&slot), || {
            format!("steps slot {}, which is not open", slot.0)
        })?;
        ensure(stepped.insert(slot), || format!("steps slot {} twice", slot.0))?;
        let sampled = !opened.contains(&slot) && kept.is_some_and(|slot| slot.sampled);
        tokens += check_sequence(sequence, batch, spec, sampled)?;
        for &page in written_pages(sequence, batch, spec) {
            ensure(writers.insert(page, index).is_none(), || format!("page {page} is written twice"))?;
        }
    }
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let pages = &batch.pages[sequence.pages.start as usize..sequence.pages.end as usize];
        for page in &pages[..sequence.start.div_ceil(spec.page_size) as usize] {
            ensure(writers.get(page).is_none_or(|&writer| writer == index), || {
                format!("page {page} of slot {} is written by another", sequence.slot.0)
            })?;
        }
    }
    ensure(tokens <= spec.max_batch_tokens.into(), || {
        format!("{tokens} input tokens are more than {}", spec.max_batch_tokens)
    })
}

/// Copies run side by side: no page may be read and written, or written twice.
fn check_copies(batch: &Batch, spec: &ExecutorSpec) -> Verdict {
    let mut targets = HashSet::new();
    for copy in &batch.copies {
        for page in [copy.from, copy.to] {
            ensure(page < spec.pages, || format!("copy names page {page} of {}", spec.pages))?;
        }
        ensure(targets.insert(copy.to), || format!("page {} is copied to twice", copy.to))?;
    }
    match batch.copies.iter().find(|copy| targets.contains(&copy.from)) {
        Some(copy) => Err(format!("page {} is copied from and to", copy.from)),
        None => Ok(()),
    }
}

fn check_open(open: &OpenSlot, spec: &ExecutorSpec) -> Verdict {
    let (slot, params) = (open.slot.0, &open.params);
    let numbers = [
        params.temperature,
        params.top_p,
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
    ];
    ensure(numbers.iter().all(|number| number.is_finite()), || {
        format!("slot {slot} has a sampling parameter that is not a number")
    })?;
    ensure(params.repetition_penalty > 0.0, || format!("slot {slot} has a repetition penalty of 0 or less"))?;
    ensure(params.logit_bias.iter().all(|(_, bias)| !bias.is_nan()), || {
        format!("slot {slot} has a logit bias that is not a number")
    })?;
    ensure(params.logit_bias.len() <= MAX_BIAS, || format!("slot {slot} has more than {MAX_BIAS} biases"))?;
    ensure(params.stop_ids.len() <= MAX_STOPS, || format!("slot {slot} has more than {MAX_STOPS} stop ids"))?;
    if let Logprobs::Top(count) = params.logprobs {
        ensure(usize::from(count) <= MAX_TOP, || format!("slot {slot} reports more than {MAX_TOP} tokens"))?;
    }
    let mut ids = open.prompt.iter().chain(&open.output);
    ensure(ids.all(|&token| token < spec.vocab_size), || {
        format!("slot {slot} has a token beyond the vocabulary of {}", spec.vocab_size)
    })
}

/// `sampled`: a placeholder has a meaning. Gives the number of tokens.
fn check_sequence(
    sequence: &SequenceStep,
    batch: &Batch,
    spec: &ExecutorSpec,
    sampled: bool,
) -> Result<u64, String> {
    let slot = sequence.slot.0;
    let tokens = batch
        .tokens
        .get(sequence.tokens.start as usize..sequence.tokens.end as usize)
        .filter(|tokens| !tokens.is_empty())
        .ok_or_else(|| format!("slot {slot} has no tokens in the batch"))?;
    if tokens == [PLACEHOLDER] {
        ensure(sampled, || format!("slot {slot} has sampled nothing that a placeholder stands for"))?;
    } else if let Some(token) = tokens.iter().find(|&&token| token >= spec.vocab_size) {
        return Err(format!("slot {slot} has token {token}, beyond the vocabulary of {}", spec.vocab_size));
    }
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
    if let Some(score) = sequence.score {
        ensure(score.from as usize <= tokens.len(), || {
            format!("slot {slot} is scored from {} of {}", score.from, tokens.len())
        })?;
        ensure(score.next.is_none_or(|next| next < spec.vocab_size), || {
            format!("slot {slot} is scored for a token beyond the vocabulary of {}", spec.vocab_size)
        })?;
    }
    Ok(tokens.len() as u64)
}

fn written_pages<'a>(sequence: &SequenceStep, batch: &'a Batch, spec: &ExecutorSpec) -> &'a [u32] {
    let end = sequence.start + (sequence.tokens.end - sequence.tokens.start);
    let pages = &batch.pages[sequence.pages.start as usize..sequence.pages.end as usize];
    &pages[(sequence.start / spec.page_size) as usize..end.div_ceil(spec.page_size) as usize]
}
