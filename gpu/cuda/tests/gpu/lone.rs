//! Steps of one sequence, nothing beside it.

use std::ops::Range;

use models::{
    Batch, Executor, Logprobs, OpenSlot, Outputs, SamplingParams, Score, SequenceStep, SlotId, StepId,
    TokenLogprob,
};

use crate::{
    harness::Failure,
    setup::{PAGE_SIZE, failure},
};

const SLOT: SlotId = SlotId(0);

/// A step over a part of a text, those before it having been computed into the first of these pages.
pub fn step(text: &[u32], part: Range<usize>, pages: Vec<u32>, score: Score) -> Batch {
    Batch {
        step: StepId(1),
        sequences: vec![SequenceStep {
            slot: SLOT,
            tokens: 0..part.len() as u32,
            start: part.start as u32,
            pages: 0..pages.len() as u32,
            sample: false,
            score: Some(score),
        }],
        tokens: text[part].to_vec(),
        pages,
        ..Batch::default()
    }
}

/// The step in which its sequence gets a slot, and reports so many most likely tokens.
pub fn opening(step: Batch, top: u8) -> Batch {
    let open = OpenSlot {
        slot: SLOT,
        params: SamplingParams { logprobs: Logprobs::Top(top), ..SamplingParams::default() },
        choice: 0,
        prompt: Vec::new(),
        output: Vec::new(),
    };
    Batch { opens: vec![open], ..step }
}

/// Runs a step and waits for it.
pub fn run(executor: &mut dyn Executor, step: &Batch) -> Result<Outputs, Failure> {
    let ticket = executor.submit(step).map_err(failure)?;
    executor.collect(ticket).map_err(failure)
}

/// Log probabilities that a step scores, and so many most likely tokens; the sequence has its slot for this step.
pub fn scored(
    executor: &mut dyn Executor,
    step: Batch,
    top: u8,
) -> Result<Vec<(f32, Vec<TokenLogprob>)>, Failure> {
    let mut outputs = run(executor, &opening(step, top))?;
    run(executor, &Batch { step: StepId(2), closes: vec![SLOT], ..Batch::default() })?;
    Ok(outputs.scored.swap_remove(0).tokens)
}

/// The pages of a text, not in their order.
pub fn pages(text: &[u32]) -> Vec<u32> {
    (0..(text.len() as u32).div_ceil(PAGE_SIZE)).rev().collect()
}

/// Scores every known token of a text in one step, and gives the most likely token at each position.
pub fn score(executor: &mut dyn Executor, text: &[u32]) -> Result<Vec<(f32, u32)>, Failure> {
    score_from(executor, text, 0)
}

/// The same for the positions from `from` on.
pub fn score_from(executor: &mut dyn Executor, text: &[u32], from: u32) -> Result<Vec<(f32, u32)>, Failure> {
    let step = step(text, 0..text.len(), pages(text), Score { from, next: None });
    let scored = scored(executor, step, 1)?;
    Ok(scored.into_iter().map(|(logprob, top)| (logprob, top[0].token)).collect())
}
