use std::time::Instant;

use super::{State, Wish};
use crate::{
    load::Work,
    policy::Candidate,
    remote::{self, Bid, Offer, PassedOver, There, Weighed},
};

impl State {
    /// Weighs whether a prefill instance should compute the prompt, and counts it as that one's if so. `None` if there
    /// is nothing to weigh: none lives, the engine takes nothing from others, engines may have died of the request, or the
    /// prompt is scored, which only the engine itself can do.
    pub(super) fn weigh_prefill(
        &mut self,
        wish: &Wish<'_>,
        engine: usize,
        missing: u32,
        number: u64,
        now: Instant,
    ) -> Option<Weighed> {
        let computes_all = self.decode.members()[engine].computes_all();
        let is_scored = wish.submit.score_prompt_from.is_some();
        if self.prefill.is_empty() || computes_all || wish.alone || is_scored {
            return None;
        }
        self.prefill.look_up(wish.chains);
        let weighed = self.remote.weigh(self.offer(wish, engine, missing));
        if let Some(place) = weighed.named().and_then(|prefill| self.prefill.place(prefill)) {
            let work = Work { prefill_tokens: self.lacks(wish, place), blocks: 0 };
            self.prefill.dispatched(place, number, work, wish.chains, now);
        }
        Some(weighed)
    }

    fn offer(&self, wish: &Wish<'_>, engine: usize, missing_tokens: u32) -> Offer {
        let Candidate { prefill_tokens: queued_tokens, requests, .. } = self.decode.candidate(engine, None);
        let here = Bid { missing_tokens, queued_tokens, token_ns: self.decode.token_ns(engine) };
        let sent = wish.reusable(self.decode.page_size_at(engine));
        let engine = &self.decode.members()[engine];
        let (mut open, mut passed_over) = (Vec::new(), PassedOver::default());
        for (place, member) in self.prefill.members().iter().enumerate() {
            if !engine.takes_pages_of(member) {
                passed_over.other_layout += 1;
            } else if member.longest_sequence() <= u64::from(sent) {
                passed_over.too_small += 1;
            } else if wish.doubts(member.instance()) {
                passed_over.doubted += 1;
            } else if engine.shuns(member.instance()) {
                passed_over.shunned += 1;
            } else {
                open.push((place, self.bid(wish, place)));
            }
        }
        let (here, there) = remote::soonest(here, &open);
        let there = there.map(|(place, bid)| {
            let instance = self.prefill.members()[place].instance().clone();
            There { instance, bid }
        });
        Offer { here, spares: requests > 0 && !wish.submit.goes_on(), there, passed_over }
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
        let reusable = wish.reusable(self.prefill.page_size_at(place));
        wish.prompt_tokens() - self.prefill.cached_tokens(place).min(reusable)
    }
}
