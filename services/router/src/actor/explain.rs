//! Decisions: counted, kept to be read back, recorded; and what engines found of what was predicted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use messages::{Envelope, Fault, InstanceId, load::Started, submit::Submit};
use metrics::{Counter, Histogram};

use super::{Job, RouterActor};
use crate::{
    decisions::{About, Basis, Checked, Decision, Fate, KEPT, Note, Outcome},
    deployment::{Choice, Deployment, SHOWN},
    policy::Policy,
};

/// What decisions are counted by, found once.
pub(super) struct Meters {
    pub seconds: Histogram,
    pub cpu_seconds: Histogram,
    overlap_blocks: Histogram,
    /// By basis, and by whether the prompt is computed elsewhere.
    decisions: [[Counter; 2]; 3],
}

impl Meters {
    pub fn of(policy: Policy) -> Self {
        let decisions = |by: Basis, remote: bool| {
            metrics::counter!(
                "stator_router_decisions_total",
                "policy" => policy.name(), "by" => by.name(), "remote_prefill" => yes_no(remote),
            )
        };
        Self {
            seconds: metrics::histogram!("stator_router_decision_seconds"),
            cpu_seconds: metrics::histogram!("stator_router_decision_cpu_seconds"),
            overlap_blocks: metrics::histogram!("stator_router_overlap_blocks"),
            decisions: Basis::ALL.map(|by| [false, true].map(|remote| decisions(by, remote))),
        }
    }

    fn count(&self, choice: &Choice) {
        self.decisions[choice.basis as usize][usize::from(choice.prefill.is_some())].increment(1);
        let overlap = choice.predicted_cached_tokens / choice.demand.page_size.max(1);
        self.overlap_blocks.record(f64::from(overlap));
    }
}

impl RouterActor {
    pub(super) fn explain(&self, job: &Job, number: u64, choice: Choice) {
        self.meters.count(&choice);
        let mut decision = Decision {
            number,
            about: self.about(&job.envelope, &job.submit),
            held_us: micros(job.taken.elapsed()),
            basis: choice.basis,
            policy: choice.policy,
            weights: choice.weights,
            demand: choice.demand,
            candidates: Vec::new(),
            left_out: choice.shortlist.left_out,
            chosen: choice.engine,
            prefill: choice.prefill,
            remote_prefill: choice.weighed,
            outcome: Outcome::Offered,
            predicted_cached_tokens: choice.predicted_cached_tokens,
            cached_tokens: None,
            prefill_cached_tokens: None,
        };
        let mut shortlist = Some(choice.shortlist);
        if let Some(recorder) = &self.recorder {
            let all = shortlist.take().map(|all| all.write_out(&decision.weights, &decision.demand));
            decision.candidates = all.unwrap_or_default();
            recorder.record(decision.clone());
            decision.shorten(SHOWN);
        }
        self.ledger.lock().enter(decision, shortlist);
    }

    /// What became of a request that is not dispatched.
    pub(super) fn note(
        &self,
        envelope: &Envelope,
        submit: &Submit,
        outcome: Fate,
        held: Duration,
        why: Option<Fault>,
    ) {
        self.notes.lock().put(Note {
            about: self.about(envelope, submit),
            outcome,
            held_us: micros(held),
            why,
        });
    }

    fn about(&self, envelope: &Envelope, submit: &Submit) -> About {
        About {
            router: self.context.me.instance.clone(),
            at_ms: unix_ms(),
            request: envelope.request,
            attempt: envelope.attempt,
            label: envelope.label.clone(),
            tenant: submit.routing.tenant.clone(),
            pool: submit.pool.clone(),
        }
    }

    /// The decisions about a request, by bus id or label, as JSON, and what became of attempts without one.
    ///
    /// # Errors
    /// If this router knows of none.
    pub fn decisions_about(&self, name: &str) -> Result<serde_json::Value, String> {
        let (ledger, notes) = (self.ledger.lock(), self.notes.lock());
        let decisions = ledger.about(name).into_iter().map(serde_json::to_value);
        let notes = notes.about(name).into_iter().map(serde_json::to_value);
        let about: Vec<_> = decisions.chain(notes).filter_map(Result::ok).collect();
        if about.is_empty() {
            return Err(format!(
                "{} knows of no request '{name}'. Each router keeps its own decisions, the last {KEPT} dispatches, and \
                 as many requests that it queued, held or refused: ask the others too.",
                self.context.me.instance
            ));
        }
        Ok(about.into())
    }

    /// Compares what was predicted with what the engine found; asks for its cache anew if the index is far off.
    pub(super) fn check(&self, deployment: &Deployment, engine: &InstanceId, started: &[Started]) {
        let mut ledger = self.ledger.lock();
        for started in started.iter().filter(|started| started.router == self.context.me.instance) {
            let Some(Checked { predicted, found, prompt }) = ledger.started(engine, started) else {
                continue;
            };
            metrics::counter!("stator_router_predictions_checked_total").increment(1);
            metrics::counter!("stator_router_predicted_cached_tokens_total").increment(predicted.into());
            metrics::counter!("stator_router_found_cached_tokens_total").increment(found.into());
            metrics::counter!("stator_router_prompt_tokens_total").increment(prompt.into());
            let mut state = deployment.lock();
            let Some(fleet) = state.fleet_of(engine) else { continue };
            let follows = fleet.follows();
            let Some(member) = fleet.member_mut(engine) else { continue };
            if member.drift.observe(predicted, found, prompt) && follows {
                tracing::info!(%engine, "the index has drifted from this cache, which is asked for anew");
                metrics::counter!("stator_router_drift_resyncs_total").increment(1);
                member.follower.lose();
            }
        }
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
