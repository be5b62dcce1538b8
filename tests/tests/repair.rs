//! What breaks while streams run, and that no client notices: no token lost, none repeated, no error.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Service, Signal,
    cluster::{Plan, stator},
    http::{Http, assemble},
    model::toy,
};
use tokio::task::JoinSet;

/// A mix of greedy, seeded, several choices and stop strings, each with a prompt of its own.
fn request(i: usize) -> Value {
    let mut request = json!({
        "model": "toy", "stream": true, "max_tokens": 120, "ignore_eos": true, "seed": i,
        "messages": [{"role": "user", "content": format!("story number {i}")}],
        "temperature": if i.is_multiple_of(2) { 0.0 } else { 0.9 },
    });
    if i % 4 == 1 {
        request["n"] = json!(2);
    }
    if i % 4 == 3 {
        request["logprobs"] = json!(true);
        request["top_logprobs"] = json!(2);
    }
    request
}

type Texts = Vec<(String, Option<String>)>;

async fn undisturbed(http: &Http, streams: usize) -> Vec<Texts> {
    let mut texts = Vec::new();
    for i in 0..streams {
        let events = http.stream("/v1/chat/completions", &request(i), |_| {}).await.unwrap();
        texts.push(assemble(&events).unwrap());
    }
    texts
}

/// Starts all streams at once; `started` counts those that have shown their fifth event.
fn start_streams(
    http: &Http,
    streams: usize,
    started: &Arc<AtomicUsize>,
) -> JoinSet<(usize, anyhow::Result<Texts>)> {
    let mut running = JoinSet::new();
    for i in 0..streams {
        let (http, started) = (http.clone(), started.clone());
        running.spawn(async move {
            let seen = |events| {
                if events == 5 {
                    started.fetch_add(1, Ordering::Relaxed);
                }
            };
            let events = http.stream("/v1/chat/completions", &request(i), seen).await;
            (i, events.and_then(|events| assemble(&events)))
        });
    }
    running
}

async fn wait_for(started: &AtomicUsize, streams: usize) {
    for _ in 0..2000 {
        if started.load(Ordering::Relaxed) >= streams {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("only {} of {streams} streams began", started.load(Ordering::Relaxed));
}

/// Runs `streams` streams, breaks something once all have begun, and compares with an undisturbed run.
async fn survives(plan: Plan, streams: usize, breaks: impl AsyncFnOnce(&mut Cluster)) {
    let mut cluster = Cluster::start(plan).await;
    let http = cluster.http();
    let expected = undisturbed(&http, streams).await;
    let started = Arc::new(AtomicUsize::new(0));
    let mut running = start_streams(&http, streams, &started);
    wait_for(&started, streams).await;
    breaks(&mut cluster).await;
    while let Some(done) = running.join_next().await {
        let (i, texts) = done.unwrap();
        match texts {
            Ok(texts) => assert_eq!(texts, expected[i], "stream {i} differs\n{}", cluster.logs()),
            Err(error) => panic!("stream {i}: {error:#}\n{}", cluster.logs()),
        }
    }
    cluster.settled(Duration::from_secs(10)).await;
}

/// Slow enough that a fault meets every stream midway.
const PACED: [&str; 2] = ["--step-floor-ms", "8"];

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_one_of_two_engines_goes_unnoticed_by_eight_streams() {
    let plan = Plan::of(toy()).replicas(1, 1, 2).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| cluster.child(Service::Decode, 0).kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_engine_is_left_and_its_late_frames_change_nothing() {
    let plan = Plan::of(toy()).replicas(1, 1, 2).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| {
        cluster.child(Service::Decode, 0).signal(Signal::STOP);
        tokio::time::sleep(Duration::from_secs(6)).await;
        cluster.child(Service::Decode, 0).signal(Signal::CONT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_one_of_two_tokenizers_goes_unnoticed() {
    let plan = Plan::of(toy()).replicas(2, 1, 1).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| cluster.child(Service::Tokenizer, 0).kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_a_router_goes_unnoticed_by_running_streams() {
    let plan = Plan::of(toy()).replicas(1, 2, 1).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| cluster.child(Service::Router, 0).kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_restarts_costs_a_pause_and_nothing_else() {
    let plan = Plan::of(toy()).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| {
        cluster.nats[0].kill();
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.nats[0].resume();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_engine_finishes_what_it_has_and_leaves() {
    let plan = Plan::of(toy()).replicas(1, 1, 2).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| {
        let engine = cluster.child(Service::Decode, 0);
        engine.signal(Signal::TERM);
        assert!(engine.ended_within(Duration::from_secs(30)).await.is_some_and(|status| status.success()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_was_asked_for_says_when_nobody_would_miss_the_engine() {
    let plan = Plan::of(toy()).replicas(1, 1, 3).with(Service::Decode, &PACED);
    survives(plan, 8, async |cluster| {
        let admin = Http::at(&cluster.admin_address(Service::Decode, 0));
        let drained = tokio::spawn(async move { admin.post("/admin/drain?wait=true", &json!({})).await });
        let instance = cluster.instance(Service::Decode, 1);
        let nats = cluster.nats[0].url();
        let command = tokio::process::Command::new(stator())
            .args(["drain", &instance, "--nats-url", &nats])
            .output()
            .await
            .unwrap();
        assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
        let said: Value = serde_json::from_slice(&command.stdout).unwrap();
        assert_eq!(said, json!({"instance": instance, "safe_to_stop": true}));
        let reply = drained.await.unwrap().unwrap();
        assert_eq!(reply.json(), json!({"state": "drained", "safe_to_stop": true}));
        for _ in 0..2 {
            let left = cluster.running(Service::Decode).len();
            if left == 1 {
                return;
            }
            let ended = cluster.child(Service::Decode, 0).ended_within(Duration::from_secs(5)).await;
            assert!(ended.is_some_and(|status| status.success()), "{left} engines are left");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_engine_may_restart_while_requests_wait() {
    let mut cluster = Cluster::start(Plan::of(toy())).await;
    let http = cluster.http();
    let expected = undisturbed(&http, 2).await;
    cluster.child(Service::Decode, 0).kill();
    let started = Arc::new(AtomicUsize::new(0));
    let mut running = start_streams(&http, 2, &started);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.add(Service::Decode);
    while let Some(done) = running.join_next().await {
        let (i, texts) = done.unwrap();
        assert_eq!(texts.unwrap(), expected[i], "{}", cluster.logs());
    }
}
