use std::{collections::BTreeMap, io::BufRead};

use anyhow::Context;
use messages::InstanceId;
use serde::Serialize;

use super::{Basis, Decision};
use crate::policy::{Candidate, Demand, Policy, Pricer};

/// Decisions of a file under their own policy and under another.
#[derive(Debug, PartialEq, Serialize)]
pub struct Replayed {
    pub decisions: usize,
    /// Pinned or shortened ones, which leave nothing to decide again.
    pub skipped: usize,
    /// Share that would have gone to the same engine.
    pub same: f64,
    pub recorded: Tally,
    pub replayed: Tally,
}

/// What a policy made of the recorded moments.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Share of prompt tokens that the chosen engine had cached.
    pub cached_share: f64,
    /// Mean of prompt tokens waiting at the chosen engine.
    pub waiting_tokens: f64,
    /// Decisions of the busiest engine over the mean.
    pub busiest: f64,
}

/// Decides every recorded moment again under `policy`, with the weights of the record. Each moment is taken as it was:
/// caches and loads do not follow the other policy's choices.
///
/// # Errors
/// If a line is no recorded decision.
pub fn replay(file: impl BufRead, policy: Policy) -> anyhow::Result<Replayed> {
    let (mut recorded, mut replayed) = (Counter::default(), Counter::default());
    let (mut decisions, mut skipped, mut same) = (0, 0, 0);
    let mut pricer: Option<Pricer> = None;
    let (mut seen, mut costs) = (Vec::new(), Vec::new());
    for (number, line) in file.lines().enumerate() {
        let decision: Decision =
            serde_json::from_str(&line?).with_context(|| format!("line {}", number + 1))?;
        let chosen = decision.candidates.iter().position(|candidate| candidate.instance == decision.chosen);
        let Some(chosen) = chosen.filter(|_| decision.basis != Basis::Pin && decision.left_out == 0) else {
            skipped += 1;
            continue;
        };
        let mut candidates: Vec<_> =
            decision.candidates.iter().filter(|candidate| !candidate.tried).collect();
        // The order of costs would tell a policy that takes turns what the recorded one preferred.
        candidates.sort_by(|a, b| a.instance.cmp(&b.instance));
        seen.clear();
        seen.extend(candidates.iter().map(|candidate| candidate.seen));
        let pricer = pricer.get_or_insert_with(|| Pricer::new(policy, decision.weights, 0));
        // The policy is on trial, whatever sessions said.
        let demand = Demand { session: false, ..decision.demand };
        pricer.price(&demand, seen.iter().copied(), &mut costs);
        let Some(other) = pricer.pick(&costs) else { continue };
        decisions += 1;
        same += usize::from(candidates[other].instance == decision.chosen);
        recorded.count(&decision, &decision.chosen, &decision.candidates[chosen].seen);
        replayed.count(&decision, &candidates[other].instance, &seen[other]);
    }
    let same = same as f64 / decisions.max(1) as f64;
    Ok(Replayed { decisions, skipped, same, recorded: recorded.tally(), replayed: replayed.tally() })
}

#[derive(Default)]
struct Counter {
    cached: u64,
    prompt: u64,
    waiting: u64,
    by_engine: BTreeMap<InstanceId, u64>,
    /// Most engines that there were to choose from.
    engines: usize,
}

impl Counter {
    fn count(&mut self, decision: &Decision, engine: &InstanceId, seen: &Candidate) {
        let demand = &decision.demand;
        self.cached += u64::from((seen.overlap_blocks * demand.page_size).min(demand.prompt_tokens));
        self.prompt += u64::from(demand.prompt_tokens);
        self.waiting += u64::from(seen.prefill_tokens);
        self.engines = self.engines.max(decision.candidates.len());
        *self.by_engine.entry(engine.clone()).or_default() += 1;
    }

    fn tally(&self) -> Tally {
        let all: u64 = self.by_engine.values().sum();
        let most = self.by_engine.values().max().copied().unwrap_or(0);
        Tally {
            cached_share: self.cached as f64 / self.prompt.max(1) as f64,
            waiting_tokens: self.waiting as f64 / all.max(1) as f64,
            busiest: most as f64 * self.engines as f64 / all.max(1) as f64,
        }
    }
}
