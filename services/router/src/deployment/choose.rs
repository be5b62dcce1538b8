use std::time::Instant;

use actors::suspects::Suspects;
use messages::{InstanceId, submit::Submit};

use super::State;
use crate::{
    decisions::{Basis, Considered, Shortlist, Shown},
    fleet::hash_of,
    load::Work,
    policy::{Candidate, Demand, Policy, Weights, least_prefill},
    remote::Bid,
};

/// Candidates that a decision shows: the best of them, and always the chosen one.
pub const SHOWN: usize = 16;

/// What is asked for.
pub struct Wish<'a> {
    pub submit: &'a Submit,
    /// Ids of the prompt's whole blocks.
    pub chain: &'a [u64],
    pub page_size: u32,
    /// Engines that did not take it.
    pub tried: &'a [InstanceId],
    pub suspects: &'a Suspects,
    /// Tell of all candidates, not only of the best.
    pub show_all: bool,
}

/// What was chosen, and why.
pub struct Choice {
    pub engine: InstanceId,
    pub prefill: Option<InstanceId>,
    pub predicted_cached_tokens: u32,
    pub basis: Basis,
    pub policy: Policy,
    pub weights: Weights,
    pub demand: Demand,
    pub shortlist: Shortlist,
}

impl State {
    /// Chooses engines for a dispatch of this number and counts it as theirs; `None` if nobody is left to choose.
    pub fn choose(&mut self, wish: &Wish<'_>, number: u64, now: Instant) -> Option<Choice> {
        let routing = &wish.submit.routing;
        let session = routing.session.as_deref().map(hash_of);
        let prompt_tokens = u32::try_from(wish.submit.prompt.len()).unwrap_or(u32::MAX);
        let demand = Demand { prompt_tokens, page_size: wish.page_size, session: session.is_some() };
        self.decode.look_up(wish.chain);
        self.pricer.price(&demand, self.decode.candidates(session), &mut self.costs);
        let place = self.pick(wish)?;

        let chosen = self.decode.candidate(place, session);
        // At least the last token has to be computed.
        let reusable = prompt_tokens.saturating_sub(1) / wish.page_size.max(1);
        let predicted_cached_tokens = chosen.overlap_blocks.min(reusable) * wish.page_size;
        let missing = prompt_tokens - predicted_cached_tokens;
        let shortlist = self.shortlist(wish, &demand, session, place);
        let prefill = self.choose_prefill(wish, place, missing, number, now);

        let blocks = prompt_tokens.div_ceil(wish.page_size.max(1)).saturating_sub(chosen.overlap_blocks);
        let work = Work { prefill_tokens: if prefill.is_some() { 0 } else { missing }, blocks };
        self.decode.dispatched(place, number, work, wish.chain, now);
        let engine = self.decode.members()[place].instance().clone();
        Some(Choice {
            engine,
            prefill,
            predicted_cached_tokens,
            basis: match (&routing.pin, session) {
                (Some(_), _) => Basis::Pin,
                (None, Some(_)) => Basis::Session,
                (None, None) => Basis::Policy,
            },
            policy: self.pricer.policy,
            weights: self.pricer.weights,
            demand,
            shortlist,
        })
    }

    /// The best place that was not tried. Doubts are preferences: a doubted engine serves when nobody else can.
    fn pick(&mut self, wish: &Wish<'_>) -> Option<usize> {
        if wish.submit.routing.pin.is_none() && wish.tried.is_empty() {
            let place = self.pricer.pick(&self.costs)?;
            if !self.avoids(wish, place) {
                return Some(place);
            }
        }
        self.open.clone_from(&self.costs);
        if let Some(pin) = &wish.submit.routing.pin {
            self.open.fill(f64::INFINITY);
            let place = self.decode.place(pin)?;
            self.open[place] = self.costs[place];
        }
        for place in wish.tried.iter().filter_map(|tried| self.decode.place(tried)) {
            self.open[place] = f64::INFINITY;
        }
        let mut doubted = None;
        while let Some(place) = self.pricer.pick(&self.open) {
            if !self.avoids(wish, place) {
                return Some(place);
            }
            doubted.get_or_insert(place);
            self.open[place] = f64::INFINITY;
        }
        doubted
    }

    fn avoids(&self, wish: &Wish<'_>, place: usize) -> bool {
        let member = &self.decode.members()[place];
        wish.doubts(member.instance()) || self.has_suspect(member)
    }

    fn shortlist(&self, wish: &Wish<'_>, demand: &Demand, session: Option<u64>, chosen: usize) -> Shortlist {
        let shown = if wish.show_all { self.costs.len() } else { SHOWN };
        let mut places = cheapest(&self.costs, shown);
        if !places.contains(&chosen) {
            places.pop();
            places.push(chosen);
        }
        let prices = self.pricer.policy == Policy::Kv && !demand.session;
        let roster = self.decode.roster();
        let shown = places.iter().map(|place| {
            let instance = &roster[*place].instance;
            Shown {
                place: *place as u32,
                seen: self.decode.candidate(*place, session),
                cost: self.costs[*place],
                tried: wish.tried.contains(instance),
                doubted: wish.doubts(instance),
            }
        });
        Shortlist {
            roster: roster.clone(),
            shown: shown.collect(),
            left_out: self.costs.len() - places.len(),
            least: prices.then(|| least_prefill(self.decode.candidates(None))),
        }
    }

    /// A prefill instance, if it pays to compute the prompt there.
    fn choose_prefill(
        &mut self,
        wish: &Wish<'_>,
        engine: usize,
        missing: u32,
        number: u64,
        now: Instant,
    ) -> Option<InstanceId> {
        if self.prefill.is_empty() {
            return None;
        }
        let Candidate { prefill_tokens: queued, requests, .. } = self.decode.candidate(engine, None);
        let local = Bid { missing, queued, token_ns: self.decode.token_ns(engine) };
        let spares = requests > 0 && !wish.submit.goes_on();
        let engine = &self.decode.members()[engine];
        let prompt = wish.submit.prompt.len() as u32;
        self.prefill.look_up(wish.chain);
        let bid = |place: usize, seen: Candidate| Bid {
            missing: prompt.saturating_sub(seen.overlap_blocks * wish.page_size),
            queued: seen.prefill_tokens,
            token_ns: self.prefill.token_ns(place),
        };
        let remotes = self.prefill.candidates(None).zip(self.prefill.members()).enumerate();
        let remotes = remotes.filter(|(_, (_, member))| member.exchanges_pages_with(engine));
        let remotes = remotes.map(|(place, (seen, _))| (place, bid(place, seen)));
        let place = self.remote.best(&local, spares, remotes)?;
        let seen = self.prefill.candidate(place, None);
        let left = prompt.saturating_sub(seen.overlap_blocks * wish.page_size);
        self.prefill.dispatched(place, number, Work { prefill_tokens: left, blocks: 0 }, wish.chain, now);
        Some(self.prefill.members()[place].instance().clone())
    }

    /// The dispatch of this number was not taken.
    pub fn refused(&mut self, engine: &InstanceId, prefill: Option<&InstanceId>, number: u64) {
        self.decode.refused(engine, number);
        if let Some(prefill) = prefill {
            self.prefill.refused(prefill, number);
        }
    }
}

/// The places of so many lowest costs, lowest first.
fn cheapest(costs: &[f64], most: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(most.min(costs.len()) + 1);
    for (place, cost) in costs.iter().enumerate() {
        if best.len() < most || best.last().is_some_and(|worst| cost < &costs[*worst]) {
            best.insert(best.partition_point(|better| costs[*better] <= *cost), place);
            best.truncate(most);
        }
    }
    best
}

impl Choice {
    /// The candidates that it shows, best first.
    pub fn considered(&self) -> Vec<Considered> {
        self.shortlist.write_out(&self.weights, &self.demand)
    }
}

impl Wish<'_> {
    fn doubts(&self, engine: &InstanceId) -> bool {
        self.submit.avoid.contains(engine) || self.suspects.is_suspect(engine)
    }
}
