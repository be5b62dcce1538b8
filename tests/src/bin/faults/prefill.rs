//! How long prefill of the journals of broken streams takes when nothing else is computed.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use stator_tests::{Cluster, Service, Signal};
use tokio::task::JoinSet;

use crate::load::Outcome;

const LEAVE_WITHIN: Duration = Duration::from_secs(20);
/// Ids of ordinary words in any vocabulary that the suite uses.
const IDS: std::ops::Range<usize> = 1000..40_000;

/// Tokens of prompt and output that each stream had when the blow fell.
pub fn journals(outcomes: &[Outcome], blow: Instant) -> Vec<usize> {
    let broken =
        outcomes.iter().filter(|outcome| outcome.began < blow && outcome.events.last() > Some(&blow));
    let tokens = broken.filter_map(|outcome| {
        let answer = outcome.answer.as_ref().ok()?;
        let before = outcome.events.iter().filter(|at| **at < blow).count() as u64;
        let output = answer.completion_tokens * before / outcome.events.len() as u64;
        usize::try_from(answer.prompt_tokens + output).ok()
    });
    tokens.collect()
}

/// Has one engine of an idle cluster prefill that many prompts of that length at once.
///
/// # Errors
/// If a request fails.
pub async fn time(cluster: &mut Cluster, prompts: usize, tokens: usize) -> anyhow::Result<Duration> {
    for (service, left) in [(Service::Prefill, 0), (Service::Decode, 1)] {
        while cluster.running(service).len() > left {
            let engine = cluster.child(service, left);
            engine.signal(Signal::TERM);
            engine.ended_within(LEAVE_WITHIN).await.context("an engine did not leave")?;
        }
    }
    let mut requests = JoinSet::new();
    let began = Instant::now();
    for n in 0..prompts {
        let http = cluster.http();
        let ids: Vec<usize> = (0..tokens).map(|i| IDS.start + (n * 7919 + i * 104_729) % IDS.len()).collect();
        let body = json!({"model": "smollm2", "prompt": ids, "max_tokens": 1, "ignore_eos": true});
        requests.spawn(async move { http.post("/v1/completions", &body).await });
    }
    while let Some(reply) = requests.join_next().await {
        let reply = reply??;
        anyhow::ensure!(reply.status == 200, "{}", reply.body);
    }
    Ok(began.elapsed())
}
