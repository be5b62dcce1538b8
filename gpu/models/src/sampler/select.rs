//! Partial selection: the few tokens that matter, without sorting a vocabulary.

use std::cmp::Ordering;

use crate::TokenId;

use super::passes::{BLOCK, exp};

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub token: TokenId,
    pub logit: f32,
    /// Its probability over that of the most likely token.
    pub weight: f32,
}

/// Ranges narrower than this are sorted rather than split.
const SORT_BELOW: usize = 32;

/// Most likely first, ties to the lowest id.
pub(super) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Replaces `candidates` with the `count` most likely tokens, ties to the lowest ids, in no order and not weighed.
/// `maxima` are the row's block maxima.
pub(super) fn most_likely(
    logits: &[f32],
    count: usize,
    maxima: &[f32],
    selection: &mut Vec<f32>,
    candidates: &mut Vec<Candidate>,
) {
    // The `count` blocks with the largest maxima hold at least `count` logits not below the least of those maxima.
    let floor = if count <= maxima.len() {
        selection.clear();
        selection.extend_from_slice(maxima);
        *selection.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    gather(logits, floor, maxima, candidates);
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, best_first);
        candidates.truncate(count);
    }
}

/// Replaces `candidates` with the tokens that weigh at least `floor`, and perhaps some a little lighter, weighed.
pub(super) fn at_least(
    logits: &[f32],
    max: f32,
    scale: f32,
    floor: f64,
    maxima: &[f32],
    candidates: &mut Vec<Candidate>,
) {
    /// Tokens this much lighter are let in, so that rounding keeps none out.
    const SLACK: f64 = 1e-3;
    let below = floor.max(f64::from(f32::MIN_POSITIVE)).ln() - SLACK;
    let floor = (f64::from(max) + below / f64::from(scale)) as f32;
    gather(logits, floor, maxima, candidates);
    weigh(candidates, max, scale);
}

fn gather(logits: &[f32], floor: f32, maxima: &[f32], candidates: &mut Vec<Candidate>) {
    candidates.clear();
    for (block, (row, &max)) in logits.chunks(BLOCK).zip(maxima).enumerate() {
        if max >= floor {
            for (offset, &logit) in row.iter().enumerate() {
                if logit >= floor {
                    let token = (block * BLOCK + offset) as TokenId;
                    candidates.push(Candidate { token, logit, weight: 0.0 });
                }
            }
        }
    }
}

/// Gives each candidate its weight and returns their sum.
pub(super) fn weigh(candidates: &mut [Candidate], max: f32, scale: f32) -> f64 {
    let mut total = 0.0;
    for candidate in candidates {
        candidate.weight = exp((candidate.logit - max) * scale);
        total += f64::from(candidate.weight);
    }
    total
}

/// Moves the smallest set of most likely candidates whose weights reach `goal` to the front and returns how many
/// they are: at least one, and all if their weights never reach it.
pub(super) fn nucleus(candidates: &mut [Candidate], goal: f64) -> usize {
    let weight = |range: &[Candidate]| range.iter().map(|c| f64::from(c.weight)).sum::<f64>();
    let (mut start, mut end) = (0, candidates.len());
    let mut mass = 0.0;
    while end - start > SORT_BELOW {
        let half = (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(half, best_first);
        let left = weight(&candidates[start..start + half]);
        if mass + left >= goal {
            end = start + half;
        } else {
            mass += left;
            start += half;
        }
    }
    candidates[start..end].sort_unstable_by(best_first);
    for (at, candidate) in candidates[start..end].iter().enumerate() {
        mass += f64::from(candidate.weight);
        if mass >= goal {
            return start + at + 1;
        }
    }
    // The goal lies on the border of the last range: rounding may have left it just unreached.
    end.max(1).min(candidates.len())
}

/// The first candidate at which the running sum of weights exceeds `u` times their total.
pub(super) fn draw(candidates: &[Candidate], u: f64) -> TokenId {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let target = u * total;
    let mut running = 0.0;
    let mut last = candidates.first().map_or(0, |c| c.token);
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        last = candidate.token;
        running += f64::from(candidate.weight);
        if running > target {
            break;
        }
    }
    last
}

/// The first token of a whole row at which the running sum of weights exceeds `target`. `sums` are the weights of the
/// row's blocks.
pub(super) fn draw_from_row(logits: &[f32], max: f32, scale: f32, sums: &[f32], target: f64) -> TokenId {
    let mut before = 0.0;
    let mut chosen = 0;
    for (block, &sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        chosen = block;
        if before + f64::from(sum) > target {
            break;
        }
        before += f64::from(sum);
    }
    let start = chosen * BLOCK;
    let mut last = start;
    for (offset, &logit) in logits[start..].iter().take(BLOCK).enumerate() {
        let weight = exp((logit - max) * scale);
        if weight > 0.0 {
            last = start + offset;
            before += f64::from(weight);
            if before > target {
                break;
            }
        }
    }
    last as TokenId
}
