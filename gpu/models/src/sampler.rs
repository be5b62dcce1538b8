//! The reference sampler: from one row of f32 logits to a token and its log probabilities, as
//! [`SamplingParams`](crate::SamplingParams) orders it. Pure: the same row, parameters, history and choice give the
//! same token on every machine. The CPU executor calls it, other executors are tested against it.

mod edit;
mod history;
mod passes;
mod select;
#[cfg(test)]
mod tests;

use crate::{Logprobs, SamplingParams, TokenId, TokenLogprob, philox};

pub use history::History;

use edit::Edits;
use passes::BLOCK;
use select::Candidate;

/// Buffers of one sampling thread, grown at first use and then reused.
#[derive(Debug, Default)]
pub struct Scratch {
    maxima: Vec<f32>,
    selection: Vec<f32>,
    sums: Vec<f32>,
    candidates: Vec<Candidate>,
    edits: Edits,
}

impl Scratch {
    /// Buffers that need not grow for rows of `vocab` logits, unless parameters edit more logits than there are.
    pub fn for_vocab(vocab: usize) -> Self {
        let blocks = vocab.div_ceil(BLOCK);
        Self {
            maxima: Vec::with_capacity(blocks),
            selection: Vec::with_capacity(blocks),
            sums: Vec::with_capacity(blocks),
            candidates: Vec::with_capacity(vocab),
            edits: Edits::with_capacity(vocab),
        }
    }

    /// Bytes that [`Self::for_vocab`] allocates.
    pub fn bytes_for_vocab(vocab: usize) -> u64 {
        let blocks = vocab.div_ceil(BLOCK);
        (3 * blocks * size_of::<f32>() + vocab * (size_of::<Candidate>() + size_of::<(TokenId, f32)>()))
            as u64
    }
}

/// A token drawn from a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    pub token: TokenId,
    /// Whether the row had a finite maximum: else the token is its first largest one, and log probabilities mean nothing.
    pub finite: bool,
    /// Of the token in the raw distribution, if the parameters ask for log probabilities.
    pub logprob: Option<f32>,
}

/// Draws the next token of a choice.
///
/// `logits` is the model's raw row; bias, mask and penalties are applied to it in place. `history` holds the tokens
/// so far, so its output length is the output position of the token drawn here. The most likely tokens of the raw
/// row replace what is in `top`, best first, ties to the lowest id. Ids in `params` beyond the row are ignored. A logit
/// that is no number counts as minus infinity.
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &History,
    choice: u32,
    scratch: &mut Scratch,
    top: &mut Vec<TokenLogprob>,
) -> Draw {
    top.clear();
    let normaliser = match params.logprobs {
        Logprobs::Off => None,
        Logprobs::Top(n) => Some(report_top(logits, usize::from(n), scratch, top)),
    };
    scratch.edits.apply(logits, params, history);
    passes::block_maxima(logits, &mut scratch.maxima);
    let max = passes::max(&scratch.maxima);
    let finite = max.is_finite();
    let token = if params.is_greedy() || !finite {
        passes::first_at_least(logits, &scratch.maxima, max)
    } else {
        let u = philox::uniform(params.seed, choice, history.output_len());
        draw(logits, params, max, u, scratch)
    };
    let logprob = normaliser.map(|normaliser| scratch.edits.raw(logits, token) - normaliser);
    Draw { token, finite, logprob }
}

/// The log probability of `token` in a raw row (`token` must be an index of it); the `count` most likely tokens
/// replace what is in `top`.
pub fn score(
    logits: &[f32],
    token: TokenId,
    count: usize,
    scratch: &mut Scratch,
    top: &mut Vec<TokenLogprob>,
) -> f32 {
    top.clear();
    passes::number(logits[token as usize]) - report_top(logits, count, scratch, top)
}

/// Puts the `count` most likely tokens into `top` and returns the logarithm of the row's sum of exponentials.
fn report_top(logits: &[f32], count: usize, scratch: &mut Scratch, top: &mut Vec<TokenLogprob>) -> f32 {
    passes::block_maxima(logits, &mut scratch.maxima);
    let max = passes::max(&scratch.maxima);
    passes::block_exp_sums(logits, max, 1.0, &mut scratch.sums);
    let normaliser = (f64::from(max) + passes::total(&scratch.sums).ln()) as f32;
    if count > 0 {
        select::most_likely(logits, count, &scratch.maxima, &mut scratch.selection, &mut scratch.candidates);
        scratch.candidates.sort_unstable_by(select::best_first);
        top.extend(
            scratch.candidates.iter().map(|c| TokenLogprob { token: c.token, logprob: c.logit - normaliser }),
        );
    }
    normaliser
}

/// Temperature, top-k, top-p and min-p, then the draw: the lowest token id at which the running sum of the kept
/// weights, taken in order of ids, exceeds `u` times their total.
fn draw(logits: &[f32], params: &SamplingParams, max: f32, u: f64, scratch: &mut Scratch) -> TokenId {
    match keep(logits, params, max, scratch) {
        Kept::All { mass } => {
            select::draw_from_row(logits, max, 1.0 / params.temperature, &scratch.sums, u * mass)
        }
        Kept::Candidates => select::draw(&scratch.candidates, u),
    }
}

/// The tokens that may be drawn.
enum Kept {
    /// The whole row; its weights are summed up in [`Scratch::sums`] and, all together, here.
    All { mass: f64 },
    /// Those in [`Scratch::candidates`], in order of ids.
    Candidates,
}

fn keep(logits: &[f32], params: &SamplingParams, max: f32, scratch: &mut Scratch) -> Kept {
    let scale = 1.0 / params.temperature;
    let Scratch { maxima, selection, sums, candidates, .. } = scratch;
    let top_k = Some(params.top_k as usize).filter(|&k| k > 0 && k < logits.len());
    let top_p = Some(f64::from(params.top_p)).filter(|&p| p < 1.0);
    let min_p = Some(params.min_p).filter(|&p| p > 0.0);
    let mass = if let Some(k) = top_k {
        select::most_likely(logits, k, maxima, selection, candidates);
        select::weigh(candidates, max, scale)
    } else {
        passes::block_exp_sums(logits, max, scale, sums);
        let mass = passes::total(sums);
        if top_p.is_none() && min_p.is_none() {
            return Kept::All { mass };
        }
        // Tokens lighter than this have, all together, less than the mass that top-p drops.
        let light = top_p.map_or(0.0, |p| (1.0 - p) * mass / logits.len() as f64);
        let floor = light.max(min_p.map_or(0.0, f64::from));
        select::at_least(logits, max, scale, floor, maxima, candidates);
        mass
    };
    if let Some(p) = top_p {
        let kept = select::nucleus(candidates, p * mass);
        candidates.truncate(kept);
    }
    if let Some(p) = min_p {
        candidates.retain(|candidate| candidate.weight >= p);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.token);
    Kept::Candidates
}
