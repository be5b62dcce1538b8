use bytemuck::{Pod, Zeroable};
use models::{Logprobs, SamplingParams};

use super::{check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    sizes::MAX_TOP,
};

/// Blocks that share a row.
const CLUSTER: usize = 8;

/// How a slot samples, as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct SampleParams {
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub presence: f32,
    pub frequency: f32,
    pub repetition: f32,
    pub top_k: u32,
    pub min_tokens: u32,
    /// Low word, high word.
    pub seed: [u32; 2],
    pub choice: u32,
    pub bias_count: u32,
    pub stop_count: u32,
    /// Tokens to report, -1: no log probabilities.
    pub top_logprobs: i32,
    /// Whether penalties read this slot's counts.
    pub track_counts: u32,
    pub greedy: u32,
}

impl SampleParams {
    /// `bias_count` and `stop_count` say how many entries of the slot's lists hold.
    pub fn new(params: &SamplingParams, choice: u32, bias_count: u32, stop_count: u32) -> Self {
        let penalised = params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
            || params.repetition_penalty != 1.0;
        Self {
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            repetition: params.repetition_penalty,
            top_k: params.top_k,
            min_tokens: params.min_tokens,
            seed: [params.seed as u32, (params.seed >> 32) as u32],
            choice,
            bias_count,
            stop_count,
            top_logprobs: match params.logprobs {
                Logprobs::Off => -1,
                Logprobs::Top(count) => i32::from(count),
            },
            track_counts: penalised.into(),
            greedy: params.is_greedy().into(),
        }
    }
}

/// A token and what is added to its logit.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct BiasEntry {
    pub token: u32,
    pub value: f32,
}

/// What a row drew or scored.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Drawn {
    pub token: u32,
    /// Whether the greatest logit that a token was drawn from was a finite number: 0 or 1.
    pub finite: u32,
    pub logprob: f32,
    pub top_tokens: [u32; MAX_TOP],
    pub top_logprobs: [f32; MAX_TOP],
}

/// Draws a token for each row of logits.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// [rows]
    pub drawn: View<'a, Drawn>,
    /// [slots]
    pub last_tokens: View<'a, u32>,
    /// [rows, columns], of which the first `vocab` count
    pub logits: View<'a, f32>,
    /// Each row's slot (`u32::MAX`: none) and output position.
    pub slots: View<'a, u32>,
    pub positions: View<'a, u32>,
    /// [slots]
    pub params: View<'a, SampleParams>,
    /// [slots, max_bias]
    pub bias: View<'a, BiasEntry>,
    /// [slots, max_stops]
    pub stops: View<'a, u32>,
    /// [slots, vocab]: how often a token is in the output.
    pub counts: View<'a, u16>,
    /// [slots, vocab / 32 rounded up]: which tokens are in the prompt.
    pub prompts: View<'a, u32>,
    pub rows: usize,
    pub vocab: usize,
    pub columns: usize,
    pub max_bias: usize,
    pub max_stops: usize,
}

/// Log probabilities of known tokens.
#[derive(Debug, Clone, Copy)]
pub struct Score<'a> {
    /// [rows]
    pub scored: View<'a, Drawn>,
    /// [rows, columns], of which the first `vocab` count
    pub logits: View<'a, f32>,
    /// Each row's token, and how many most likely ones to report (at most [`MAX_TOP`]).
    pub targets: View<'a, u32>,
    pub tops: View<'a, u32>,
    pub rows: usize,
    pub vocab: usize,
    pub columns: usize,
}

/// Largest part of a row that a block keeps in shared memory.
const MAX_SLICE: usize = 50_000;

/// Of what a row has, a block takes so much: whole vectors of four.
fn slice(vocab: usize, columns: usize) -> Result<usize, CudaError> {
    let slice = vocab.div_ceil(CLUSTER).next_multiple_of(4);
    check(slice <= MAX_SLICE && vocab <= columns, || format!("{vocab} tokens of {columns} logits"))?;
    Ok(slice)
}

impl Device {
    pub fn sample(&self, op: Sample<'_>) -> Result<(), CudaError> {
        let slice = slice(op.vocab, op.columns)?;
        check_len("drawn", op.drawn, op.rows)?;
        check_len("logits", op.logits, op.rows * op.columns)?;
        check_len("slots", op.slots, op.rows)?;
        check_len("positions", op.positions, op.rows)?;
        let slots = op.params.len();
        check_len("last_tokens", op.last_tokens, slots)?;
        check_len("bias", op.bias, slots * op.max_bias)?;
        check_len("stops", op.stops, slots * op.max_stops)?;
        check_len("counts", op.counts, slots * op.vocab)?;
        check_len("prompts", op.prompts, slots * op.vocab.div_ceil(32))?;
        let arguments = arguments![
            op.drawn,
            op.last_tokens,
            op.logits,
            op.slots,
            op.positions,
            op.params,
            op.bias,
            op.stops,
            op.counts,
            op.prompts,
            op.vocab as i32,
            op.columns as i32,
            slice as i32,
            op.max_bias as i32,
            op.max_stops as i32,
        ];
        let shape = Shape::new([CLUSTER as u32, op.rows as u32, 1], 512).shared(slice * 4);
        // SAFETY: signature of sample; lengths checked, slots are trusted.
        unsafe { self.launch("sample", shape, arguments) }
    }

    pub fn score(&self, op: Score<'_>) -> Result<(), CudaError> {
        let slice = slice(op.vocab, op.columns)?;
        check_len("scored", op.scored, op.rows)?;
        check_len("logits", op.logits, op.rows * op.columns)?;
        check_len("targets", op.targets, op.rows)?;
        check_len("tops", op.tops, op.rows)?;
        let (vocab, columns) = (op.vocab as i32, op.columns as i32);
        let arguments = arguments![op.scored, op.logits, op.targets, op.tops, vocab, columns, slice as i32];
        let shape = Shape::new([CLUSTER as u32, op.rows as u32, 1], 512).shared(slice * 4);
        // SAFETY: signature of score; lengths checked, targets are trusted.
        unsafe { self.launch("score", shape, arguments) }
    }
}
