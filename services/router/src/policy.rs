//! Which engine takes a request: every policy is a cost of each candidate, and the lowest cost wins.

mod cost;
mod pick;

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::index::sample};
use serde::{Deserialize, Serialize};

pub use cost::{Terms, Weights, least_prefill};
pub use pick::Pick;

actors::choices! {
    /// How an engine is chosen.
    pub enum Policy {
        /// By what its prefix cache saves and by its load.
        Kv = "kv",
        LeastLoaded = "least-loaded",
        PowerOfTwo = "power-of-two",
        RoundRobin = "round-robin",
        Random = "random",
    }
}

/// One engine as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Candidate {
    /// Leading blocks of the prompt in its cache.
    pub overlap_blocks: u32,
    /// Prompt tokens that it has yet to compute.
    pub prefill_tokens: u32,
    /// Blocks that its running requests hold.
    pub used_blocks: u32,
    /// Requests running, queued or on their way.
    pub requests: u32,
    /// Rank for the request's session, by hash.
    pub session_rank: u64,
}

/// One request as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    pub prompt_tokens: u32,
    /// Tokens of a block.
    pub page_size: u32,
    /// Its session decides, not the policy.
    pub session: bool,
}

/// The cost of a candidate that `power-of-two` did not draw: it serves when neither of the drawn ones can.
pub const UNDRAWN: f64 = f64::MAX;

/// Engines of one session take turns only when one has this much more than the mean, and one request more.
const SESSION_BOUND: f64 = 1.25;

/// Prices candidates; keeps what a policy remembers from request to request.
#[derive(Debug)]
pub struct Pricer {
    pub policy: Policy,
    pub weights: Weights,
    turn: usize,
    rng: SmallRng,
}

impl Pricer {
    pub fn new(policy: Policy, weights: Weights, seed: u64) -> Self {
        Self { policy, weights, turn: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Writes the cost of each candidate.
    pub fn price<C>(&mut self, demand: &Demand, candidates: C, costs: &mut Vec<f64>)
    where
        C: ExactSizeIterator<Item = Candidate> + Clone,
    {
        costs.clear();
        if demand.session {
            return sticky(candidates, costs);
        }
        match self.policy {
            Policy::Kv => self.weights.price(demand, candidates, costs),
            Policy::LeastLoaded => costs.extend(candidates.map(|candidate| busy(&candidate))),
            Policy::Random => costs.extend(candidates.map(|_| self.rng.random::<f64>())),
            Policy::RoundRobin => {
                let n = candidates.len();
                let turn = self.turn % n.max(1);
                costs.extend((0..n).map(|place| ((place + n - turn) % n) as f64));
                self.turn = turn + 1;
            }
            Policy::PowerOfTwo => {
                costs.resize(candidates.len(), UNDRAWN);
                for place in sample(&mut self.rng, candidates.len(), 2.min(candidates.len())) {
                    costs[place] = candidates.clone().nth(place).map_or(UNDRAWN, |drawn| busy(&drawn));
                }
            }
        }
    }

    /// The place of the lowest cost, or one that temperature makes nearly as likely; `None` if all are infinite.
    pub fn pick(&mut self, costs: &[f64]) -> Option<usize> {
        let temperature = if self.policy == Policy::Kv { self.weights.temperature } else { 0.0 };
        Pick { costs, temperature }.draw(&mut self.rng)
    }
}

/// Requests first; among equals whoever has less to compute.
fn busy(candidate: &Candidate) -> f64 {
    f64::from(candidate.requests) + f64::from(candidate.prefill_tokens) / (f64::from(u32::MAX) + 1.0)
}

/// Rendezvous hashing with bounded loads: every router finds the same engine with nothing remembered, and a session
/// moves on only from an engine that is far busier than the others (Mirrokni et al., Consistent Hashing with Bounded
/// Loads, 2018).
fn sticky(candidates: impl Iterator<Item = Candidate>, costs: &mut Vec<f64>) {
    // Ranks are hashes: each is computed once.
    let candidates: Vec<Candidate> = candidates.collect();
    let total: u32 = candidates.iter().map(|candidate| candidate.requests).sum();
    let bound = SESSION_BOUND * f64::from(total) / candidates.len().max(1) as f64 + 1.0;
    costs.extend(candidates.iter().map(|candidate| {
        let beyond = f64::from(candidate.requests) > bound;
        f64::from(u8::from(beyond)) + 1.0 - candidate.session_rank as f64 / u64::MAX as f64
    }));
}

#[cfg(test)]
mod tests;
