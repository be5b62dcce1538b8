//! Decisions: counted, kept to be read back, recorded; and what engines found of what was predicted.

use std::time::{SystemTime, UNIX_EPOCH};

use messages::{InstanceId, load::Started};

use super::{Job, RouterActor};
use crate::{
    decisions::{Decision, Outcome},
    deployment::{Choice, Deployment, SHOWN},
};

impl RouterActor {
    pub(super) fn explain(&self, job: &Job, number: u64, choice: Choice) {
        metrics::counter!(
            "stator_router_decisions_total",
            "policy" => choice.policy.name(), "by" => choice.basis.name(), "remote_prefill" => yes_no(choice.prefill.is_some()),
        )
        .increment(1);
        let overlap = choice.predicted_cached_tokens / choice.demand.page_size.max(1);
        metrics::histogram!("stator_router_overlap_blocks").record(f64::from(overlap));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut decision = Decision {
            number,
            router: self.context.me.instance.clone(),
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            request: job.envelope.request,
            attempt: job.envelope.attempt,
            label: job.envelope.label.clone(),
            tenant: job.submit.routing.tenant.clone(),
            pool: job.submit.pool.clone(),
            held_us: u64::try_from(job.taken.elapsed().as_micros()).unwrap_or(u64::MAX),
            basis: choice.basis,
            policy: choice.policy,
            weights: choice.weights,
            demand: choice.demand,
            candidates: choice.considered,
            left_out: choice.left_out,
            chosen: choice.engine,
            prefill: choice.prefill,
            outcome: Outcome::Offered,
            predicted_cached_tokens: choice.predicted_cached_tokens,
            cached_tokens: None,
        };
        if let Some(recorder) = &self.recorder {
            recorder.record(decision.clone());
            decision.shorten(SHOWN);
        }
        self.ledger.lock().enter(decision);
    }

    /// The decisions about a request, by bus id or label, as JSON.
    pub fn decisions_about(&self, name: &str) -> Option<serde_json::Value> {
        let ledger = self.ledger.lock();
        let about = ledger.about(name);
        if about.is_empty() { None } else { serde_json::to_value(about).ok() }
    }

    /// Compares what was predicted with what the engine found; asks for its cache anew if the index is far off.
    pub(super) fn check(&self, deployment: &Deployment, engine: &InstanceId, started: &[Started]) {
        let mut ledger = self.ledger.lock();
        for started in started.iter().filter(|started| started.router == self.context.me.instance) {
            let Some(decision) = ledger.started(engine, started) else { continue };
            let (predicted, found) = (decision.predicted_cached_tokens, started.cached_tokens);
            metrics::counter!("stator_router_predictions_checked_total").increment(1);
            metrics::counter!("stator_router_predicted_cached_tokens_total").increment(predicted.into());
            metrics::counter!("stator_router_found_cached_tokens_total").increment(found.into());
            metrics::counter!("stator_router_prompt_tokens_total")
                .increment(decision.demand.prompt_tokens.into());
            let mut state = deployment.lock();
            let follows = state.decode.follows();
            let Some(member) = state.decode.member_mut(engine) else { continue };
            if member.drift.observe(predicted, found, decision.demand.prompt_tokens) && follows {
                tracing::info!(%engine, "the index has drifted from this cache, which is asked for anew");
                metrics::counter!("stator_router_drift_resyncs_total").increment(1);
                member.follower.lose();
            }
        }
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
