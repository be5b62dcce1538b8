//! A request under which every engine dies that takes it or its prompt: it fails, after three engines at most, and it
//! alone.

use std::{collections::HashSet, path::Path, time::Instant};

use serde_json::{Value, json};
use stator_tests::{Cluster, Service};
use tokio::task::JoinHandle;

use crate::{answer::Answer, gauges, load::Load, rig::Rig, verdict::Verdict};

const LABEL: &str = "poison";
/// Engines that one request may take down.
const DEATHS: usize = 3;
/// Engines of the cluster, of each role more than may die.
const PREFILLS: usize = 4;
const DECODES: usize = 5;

/// Sends the poison amid the load of the rig, kills each engine that accepts it, and judges everybody else's answers.
pub async fn run(rig: &Rig, expected: &[Answer], logs: &Path) -> Verdict {
    let mut cluster = rig.start_with(PREFILLS, DECODES).await;
    let load = Load::start(&cluster.http(), &rig.mix, rig.clients);
    let began = load.under_way().await;
    let blow = Instant::now();
    let poison = swallow(&cluster, &rig.mix.model);
    let mut dead = HashSet::new();
    while !poison.is_finished() {
        // The first to die computes its prompt: the decode engine has to live until it has asked for that.
        let roles: &[Service] =
            if dead.is_empty() { &[Service::Prefill] } else { &[Service::Prefill, Service::Decode] };
        for engine in roles.iter().flat_map(|role| cluster.running(*role)).collect::<Vec<_>>() {
            if cluster.child_at(engine).output().contains(&format!("label=\"{LABEL}\"")) {
                cluster.child_at(engine).kill();
                dead.insert(engine);
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let outcomes = load.finish().await;
    let mut verdict = Verdict::of(&outcomes, expected, blow);
    if let Err(error) = began {
        verdict.remark(format!("{error:#}"));
    }
    if dead.len() > DEATHS {
        verdict.remark(format!("{} engines died", dead.len()));
    }
    match poison.await.map_err(anyhow::Error::from).flatten() {
        Ok(fault) if fault["error"]["code"] == "engine_fault" => {}
        other => verdict.remark(format!("the poison ended with {other:?}")),
    }
    verdict.leaks = gauges::leaks(&mut cluster).await;
    verdict.keep_logs_of(&cluster, &logs.join(LABEL));
    verdict
}

/// Sends the poison; its last word.
fn swallow(cluster: &Cluster, model: &str) -> JoinHandle<anyhow::Result<Value>> {
    let http = cluster.http();
    let body = json!({
        "model": model, "max_tokens": 400, "ignore_eos": true,
        "messages": [{"role": "user", "content": "A request that kills. ".repeat(40)}],
    });
    tokio::spawn(async move {
        let headers = [("content-type", "application/json"), ("x-request-id", LABEL)];
        let reply = http.send("POST", "/v1/chat/completions", &headers, body.to_string().into()).await?;
        Ok(reply.json())
    })
}
