use models::{Outputs, Sampled, Scored, SlotId, StepId, TokenLogprob};

use super::{arena::Arena, plan::Plan, slots::Slots, stopwatch::Took};
use crate::{CudaError, Device, PinnedBuffer, ops::Drawn};

/// Host side of one step under way: what it was told, and where its results arrive.
#[derive(Debug)]
pub(super) struct Flight {
    pub block: PinnedBuffer<u32>,
    pub arena: Arena,
    pub drawn: PinnedBuffer<Drawn>,
    pub scored: PinnedBuffer<Drawn>,
    /// The step, if one is under way.
    pub step: Option<StepId>,
    pub plan: Plan,
}

/// Sequences that may be opened in a step, if all of their state is copied, before the host waits for the device.
const OPENED: usize = 4;

impl Flight {
    /// For steps of `tokens`, told of in `words`.
    pub fn new(device: &Device, words: usize, slots: &Slots, tokens: usize) -> Result<Self, CudaError> {
        Ok(Self {
            block: device.allocate_pinned(words)?,
            arena: Arena::new(device, OPENED * slots.open_words())?,
            drawn: device.allocate_pinned(slots.len())?,
            scored: device.allocate_pinned(tokens)?,
            step: None,
            plan: Plan::default(),
        })
    }

    /// Reads what a step produced that has ended.
    pub fn finish(&mut self, Took { elapsed, gap }: Took) -> Outputs {
        self.step = None;
        let drawn = self.plan.sampled.iter().zip(self.drawn.as_slice());
        let sampled = drawn.map(|(&(slot, top), drawn)| sampled(slot, top, drawn)).collect();
        let mut rest = self.scored.as_slice();
        let mut scored = Vec::with_capacity(self.plan.scored.len());
        for &((slot, top), count) in &self.plan.scored {
            let (mine, others) = rest.split_at(count);
            rest = others;
            let tokens =
                mine.iter().map(|drawn| (drawn.logprob, most_likely(drawn, top.unwrap_or(0)))).collect();
            scored.push(Scored { slot, tokens });
        }
        Outputs { sampled, scored, elapsed, gap }
    }
}

fn sampled(slot: SlotId, top: Option<u8>, drawn: &Drawn) -> Sampled {
    Sampled {
        slot,
        token: drawn.token,
        finite: drawn.finite != 0,
        logprob: top.map(|_| drawn.logprob),
        top: most_likely(drawn, top.unwrap_or(0)),
    }
}

fn most_likely(drawn: &Drawn, count: u8) -> Vec<TokenLogprob> {
    let pairs = drawn.top_tokens.iter().zip(&drawn.top_logprobs);
    pairs.take(count.into()).map(|(&token, &logprob)| TokenLogprob { token, logprob }).collect()
}
