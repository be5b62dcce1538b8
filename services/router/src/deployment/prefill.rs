use std::time::Instant;

use super::{State, Wish};
use crate::{
    load::Work,
    policy::Candidate,
    remote::{self, Bid, Offer, There, Weighed},
};

impl State {
    /// Weighs whether a prefill instance should compute the prompt, and counts it as that one's if so. `None` if there
    /// is nothing to weigh: none lives, or the prompt is scored, which only the engine itself can do.
    pub(super) fn weigh_prefill(
        &mut self,
        wish: &Wish<'_>,
        engine: usize,
        missing: u32,
        number: u64,
        now: Instant,
    ) -> Option<Weighed> {
        if self.prefill.is_empty() || wish.submit.score_prompt_from.is_some() {
            return None;
        }
        self.prefill.look_up(wish.chain);
        let (offer, place) = self.offer(wish, engine, missing);
        let weighed = self.remote.weigh(offer);
        if let (Some(_), Some(place)) = (weighed.named(), place) {
            let left = self.lacks(wish, place);
            self.prefill.dispatched(place, number, Work { prefill_tokens: left, blocks: 0 }, wish.chain, now);
        }
        Some(weighed)
    }

    /// What there is to weigh, and the place of the prefill instance in it.
    fn offer(&self, wish: &Wish<'_>, engine: usize, missing_tokens: u32) -> (Offer, Option<usize>) {
        let Candidate { prefill_tokens: queued_tokens, requests, .. } = self.decode.candidate(engine, None);
        let here = Bid { missing_tokens, queued_tokens, token_ns: self.decode.token_ns(engine) };
        let engine = &self.decode.members()[engine];
        let (mut open, mut other_layout, mut shunned) = (Vec::new(), 0, 0);
        for (place, member) in self.prefill.members().iter().enumerate() {
            if !member.exchanges_pages_with(engine) {
                other_layout += 1;
            } else if wish.doubts(member.instance()) || engine.shuns(member.instance()) {
                shunned += 1;
            } else {
                open.push((place, self.bid(wish, place)));
            }
        }
        let (here, there) = remote::soonest(here, &open);
        let place = there.map(|(place, _)| place);
        let instance = |place: usize| self.prefill.members()[place].instance().clone();
        let there = there.map(|(place, bid)| There { instance: instance(place), bid });
        let spares = requests > 0 && !wish.submit.goes_on();
        (Offer { here, spares, there, other_layout, shunned }, place)
    }

    fn bid(&self, wish: &Wish<'_>, place: usize) -> Bid {
        Bid {
            missing_tokens: self.lacks(wish, place),
            queued_tokens: self.prefill.candidate(place, None).prefill_tokens,
            token_ns: self.prefill.token_ns(place),
        }
    }

    /// Tokens of the prompt that the cache of a prefill instance lacks.
    fn lacks(&self, wish: &Wish<'_>, place: usize) -> u32 {
        let prompt = u32::try_from(wish.submit.prompt.len()).unwrap_or(u32::MAX);
        prompt.saturating_sub(self.prefill.candidate(place, None).overlap_blocks * wish.page_size)
    }
}
