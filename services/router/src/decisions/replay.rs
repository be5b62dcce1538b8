use std::{collections::BTreeMap, io::BufRead};

use anyhow::Context;
use messages::InstanceId;
use serde::Serialize;

use super::{Basis, Decision};
use crate::{
    policy::{Candidate, Policy, Pricer},
    remote::{RemoteRule, Verdict, Weighed},
};

/// What is to be decided otherwise than it was; the rest stays as recorded.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Changes {
    /// The policy to decide by: kv, least-loaded, power-of-two, round-robin or random
    #[arg(long)]
    pub policy: Option<Policy>,
    /// Prompt tokens not cached at the engine from which on a prefill instance may compute them; 0: never
    #[arg(long)]
    pub remote_prefill_tokens: Option<u32>,
    /// How many times as long as at the engine itself a remote prefill may take
    #[arg(long)]
    pub remote_prefill_slack: Option<f64>,
    /// Milliseconds that it may take beyond that while the engine has other requests
    #[arg(long)]
    pub remote_prefill_patience_ms: Option<u32>,
    /// Milliseconds that handing over a remote prefill takes beside computing and sending
    #[arg(long)]
    pub remote_prefill_overhead_ms: Option<f64>,
    /// Nanoseconds that sending the KV of one token takes
    #[arg(long)]
    pub remote_prefill_token_ns: Option<f64>,
}

/// Decisions of a file as they were made and as they would be under changes.
#[derive(Debug, PartialEq, Serialize)]
pub struct Replayed {
    pub decisions: usize,
    /// Pinned or shortened ones, which leave nothing to decide again.
    pub skipped: usize,
    /// Lines that break off: whoever wrote them was interrupted.
    pub truncated: usize,
    /// Decided by the request's session, then and now.
    pub by_session: usize,
    /// Share that would have gone to the same engine.
    pub same: f64,
    pub recorded: Tally,
    pub replayed: Tally,
    pub remote_prefills: RemotePrefills,
    pub not_reproduced: [&'static str; 5],
}

/// What a replay leaves out.
const NOT_REPRODUCED: [&str; 5] = [
    "what follows from a choice: caches and loads of each moment are those of the record",
    "chance: ties, temperature and the draws of random and power-of-two are drawn anew",
    "turns: round-robin begins with the first engine by name",
    "engines passed over because a request that engines had died under ran there",
    "prompts at other engines: whether a prefill instance is named is decided at the engine of the record",
];

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

/// Whether prefill instances were named, and would be.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct RemotePrefills {
    /// Decisions with what was weighed in them: where prefill instances lived.
    pub decisions: usize,
    /// Of these, those that would have ended the same.
    pub unchanged: usize,
    pub recorded: BTreeMap<Verdict, usize>,
    pub replayed: BTreeMap<Verdict, usize>,
}

/// Decides every recorded moment again under `changes`, with the weights of the record; requests of a session by their
/// session. Each moment is taken as it was: caches and loads do not follow the other choices.
///
/// # Errors
/// If a whole line is no recorded decision.
pub fn replay(file: impl BufRead, changes: &Changes) -> anyhow::Result<Replayed> {
    let (mut recorded, mut replayed) = (Counter::default(), Counter::default());
    let (mut decisions, mut skipped, mut truncated, mut by_session, mut same) = (0, 0, 0, 0, 0);
    let mut remote_prefills = RemotePrefills::default();
    let mut pricer: Option<Pricer> = None;
    let (mut seen, mut costs) = (Vec::new(), Vec::new());
    for (number, line) in file.split(b'\n').enumerate() {
        let decision: Decision = match serde_json::from_slice(&line?) {
            Ok(decision) => decision,
            Err(error) if error.is_eof() => {
                truncated += 1;
                continue;
            }
            Err(error) => return Err(error).with_context(|| format!("line {}", number + 1)),
        };
        decision.remote_prefill.iter().for_each(|weighed| remote_prefills.count(weighed, changes));
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
        let policy = changes.policy.unwrap_or(decision.policy);
        let pricer = pricer.get_or_insert_with(|| Pricer::new(policy, decision.weights, 0));
        (pricer.policy, pricer.weights) = (policy, decision.weights);
        pricer.price(&decision.demand, seen.iter().copied(), &mut costs);
        let doubted = |place: usize| candidates[place].doubted;
        if !(0..costs.len()).all(doubted) {
            costs
                .iter_mut()
                .enumerate()
                .filter(|(place, _)| doubted(*place))
                .for_each(|(_, cost)| *cost = f64::INFINITY);
        }
        let Some(other) = pricer.pick(&costs) else { continue };
        decisions += 1;
        by_session += usize::from(decision.demand.session);
        same += usize::from(candidates[other].instance == decision.chosen);
        recorded.count(&decision, &decision.chosen, &decision.candidates[chosen].seen);
        replayed.count(&decision, &candidates[other].instance, &seen[other]);
    }
    let same = same as f64 / decisions.max(1) as f64;
    Ok(Replayed {
        decisions,
        skipped,
        truncated,
        by_session,
        same,
        recorded: recorded.tally(),
        replayed: replayed.tally(),
        remote_prefills,
        not_reproduced: NOT_REPRODUCED,
    })
}

impl Changes {
    fn rule(&self, recorded: &RemoteRule) -> RemoteRule {
        RemoteRule {
            from_tokens: self.remote_prefill_tokens.unwrap_or(recorded.from_tokens),
            slack: self.remote_prefill_slack.unwrap_or(recorded.slack),
            patience_ms: self.remote_prefill_patience_ms.unwrap_or(recorded.patience_ms),
            overhead_ms: self.remote_prefill_overhead_ms.unwrap_or(recorded.overhead_ms),
            token_ns: self.remote_prefill_token_ns.unwrap_or(recorded.token_ns),
        }
    }
}

impl RemotePrefills {
    fn count(&mut self, weighed: &Weighed, changes: &Changes) {
        let again = changes.rule(&weighed.rule).weigh(weighed.offer.clone()).verdict;
        *self.recorded.entry(weighed.verdict).or_default() += 1;
        *self.replayed.entry(again).or_default() += 1;
        self.decisions += 1;
        self.unchanged += usize::from(again == weighed.verdict);
    }
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
