use std::sync::Arc;

use messages::lease::Lease;

use super::Considered;
use crate::policy::{Candidate, Demand, UNDRAWN, Weights};

/// The engines that a decision chose among. All decisions share it until somebody comes or goes.
pub type Roster = Arc<[Arc<Lease>]>;

/// The candidates that a decision shows, as few bytes as do: few decisions are ever read back.
#[derive(Debug, Clone)]
pub struct Shortlist {
    pub roster: Roster,
    /// Best first.
    pub shown: Vec<Shown>,
    /// Candidates not shown, all of higher cost.
    pub left_out: usize,
    /// Where the `kv` policy decides: prompt tokens that the least burdened candidate has yet to compute.
    pub least: Option<u32>,
}

/// One candidate.
#[derive(Debug, Clone)]
pub struct Shown {
    /// In the roster.
    pub place: u32,
    pub seen: Candidate,
    pub cost: f64,
    pub tried: bool,
    pub doubted: bool,
}

impl Shortlist {
    /// The same with names and cost terms.
    pub fn write_out(&self, weights: &Weights, demand: &Demand) -> Vec<Considered> {
        let considered = self.shown.iter().map(|&Shown { place, seen, cost, tried, doubted }| Considered {
            instance: self.roster[place as usize].instance.clone(),
            seen,
            cost: Some(cost).filter(|cost| *cost < UNDRAWN),
            terms: self.least.map(|least| weights.terms(demand, &seen, least)),
            tried,
            doubted,
        });
        considered.collect()
    }
}
