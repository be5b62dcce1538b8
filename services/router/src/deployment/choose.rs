use std::time::Instant;

use actors::suspects::Suspects;
use messages::{InstanceId, submit::Submit};

use super::State;
use crate::{
    chain::Chain,
    decisions::{Basis, Considered, Shortlist, Shown},
    fleet::{Member, hash_of},
    load::Work,
    policy::{Demand, Policy, Weights, least_prefill},
    remote::Weighed,
};

/// Candidates that a decision shows: the best of them, and always the chosen one.
pub const SHOWN: usize = 16;
/// Output for which an engine has room that gets a request without a limit of its own: few answers are longer.
const OPEN_OUTPUT: u32 = 512;

/// What is asked for.
pub struct Wish<'a> {
    pub submit: &'a Submit,
    /// Ids of the prompt's whole blocks, for each page size of engines.
    pub chains: &'a [Chain],
    /// Engines that did not take it.
    pub tried: &'a [InstanceId],
    pub suspects: &'a Suspects,
    /// Engines may have died of it: whoever takes it computes its prompt too, so that no further one is put at risk.
    pub alone: bool,
    /// Tell of all candidates, not only of the best.
    pub show_all: bool,
}

/// What was chosen, and why.
pub struct Choice {
    pub engine: InstanceId,
    pub prefill: Option<InstanceId>,
    /// What decided on that, where prefill instances live.
    pub weighed: Option<Weighed>,
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
        let prompt_tokens = wish.prompt_tokens();
        let demand = Demand { prompt_tokens, page_size: self.decode.page_size(), session: session.is_some() };
        self.decode.look_up(wish.chains);
        self.pricer.price(&demand, self.decode.candidates(session), &mut self.costs);
        let place = self.pick(wish)?;

        let (page_size, cached) = (self.decode.page_size_at(place), self.decode.cached_tokens(place));
        let predicted_cached_tokens = cached.min(wish.reusable(page_size));
        let missing = prompt_tokens - predicted_cached_tokens;
        let shortlist = self.shortlist(wish, &demand, session, place);
        let weighed = self.weigh_prefill(wish, place, missing, number, now);
        let prefill = weighed.as_ref().and_then(Weighed::named).cloned();

        let blocks = prompt_tokens.div_ceil(page_size).saturating_sub(cached / page_size);
        let work = Work { prefill_tokens: if prefill.is_some() { 0 } else { missing }, blocks };
        self.decode.dispatched(place, number, work, wish.chains, now);
        let engine = self.decode.members()[place].instance().clone();
        if wish.submit.maybe_poison() {
            self.poison_sent(&engine, number, now);
        }
        Some(Choice {
            engine,
            prefill,
            weighed,
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

    /// The best place that was not tried. Doubts are preferences: a doubted engine serves when nobody else can. What is too
    /// long for every engine goes to the largest, for what room it has or to be refused for good.
    fn pick(&mut self, wish: &Wish<'_>) -> Option<usize> {
        let maybe_poison = wish.submit.maybe_poison();
        if wish.submit.routing.pin.is_none() && wish.tried.is_empty() && !maybe_poison {
            let place = self.pricer.pick(&self.costs)?;
            if !self.avoids(wish, place) && self.decode.members()[place].longest_sequence() >= wish.tokens() {
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
        if wish.submit.routing.pin.is_none() {
            let longest = || self.decode.members().iter().map(Member::longest_sequence);
            let needed = wish.tokens().min(longest().max().unwrap_or(0));
            for (cost, longest) in self.open.iter_mut().zip(longest()) {
                if longest < needed {
                    *cost = f64::INFINITY;
                }
            }
        }
        if maybe_poison {
            for (place, member) in self.decode.members().iter().enumerate() {
                if self.has_poison(member) {
                    self.open[place] = f64::INFINITY;
                }
            }
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
        wish.doubts(member.instance()) || self.has_poison(member)
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

    /// The dispatch of this number was not taken.
    pub fn refused(&mut self, engine: &InstanceId, prefill: Option<&InstanceId>, number: u64) {
        self.decode.refused(engine, number);
        self.poison_refused(number);
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
    /// Tokens that an engine should have room for: the prompt, and output to its limit. Where the client named none, as much
    /// as most answers have, beyond what there is of it.
    fn tokens(&self) -> u64 {
        let Submit { prompt, choices, max_tokens, open_ended, .. } = self.submit;
        let output = if *open_ended {
            let begun = choices.iter().map(|choice| choice.output.len()).max().unwrap_or(0);
            let begun = u32::try_from(begun).unwrap_or(u32::MAX);
            begun.saturating_add(OPEN_OUTPUT).min(*max_tokens)
        } else {
            *max_tokens
        };
        prompt.len() as u64 + u64::from(output)
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.submit.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Tokens of the prompt's whole blocks, all but the last token, which is always computed by who samples.
    pub(super) fn reusable(&self, page_size: u32) -> u32 {
        self.prompt_tokens().saturating_sub(1) / page_size * page_size
    }

    pub(super) fn doubts(&self, instance: &InstanceId) -> bool {
        self.submit.avoid.contains(instance) || self.suspects.is_suspect(instance)
    }
}
