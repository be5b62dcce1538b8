//! Engines that are not what they seem: one that is cut off from the bus, and those that die under one request.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Network, Proxy, Service,
    cluster::{Plan, figure},
    eventually,
    http::{Event, Http, assemble},
    model::toy,
};

const PACED: [&str; 2] = ["--step-floor-ms", "10"];

fn chat(i: usize, max_tokens: u32) -> Value {
    json!({
        "model": "toy", "stream": true, "max_tokens": max_tokens, "ignore_eos": true, "seed": i,
        "messages": [{"role": "user", "content": format!("question {i}")}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_cut_off_ends_its_runs_and_comes_back_clean() {
    let mut cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &PACED)).await;
    let http = cluster.http();
    let whole = assemble(&http.stream("/v1/chat/completions", &chat(1, 400), |_| {}).await.unwrap()).unwrap();

    // The first engine goes; the one that is left reaches NATS through the proxy.
    let proxy = Proxy::to(cluster.nats[0].address()).await.unwrap();
    cluster.child(Service::Decode, 0).kill();
    cluster.add_over(Service::Decode, &format!("nats://{}", proxy.address()), &[]);
    cluster.ready().await;
    let streaming = tokio::spawn({
        let http = http.clone();
        async move { http.stream("/v1/chat/completions", &chat(1, 400), |_| {}).await }
    });
    assert_eq!(cluster.engine_with_a_run(Duration::from_secs(10)).await, 0);
    proxy.becomes(Network::Cut);
    cluster.add(Service::Decode);
    let events = streaming.await.unwrap().unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
    assert_eq!(assemble(&events).unwrap(), whole, "the other engine went on with the same tokens");

    let cut_off = cluster.admin_addresses("decode")[0].clone();
    let live = async |address: &str| {
        let figures = Http::at(address).get("/metrics").await.ok()?.body;
        figure(&figures, "stator_engine_kv_blocks_used")
    };
    eventually("the engine has fenced itself", Duration::from_secs(20), async || {
        live(&cut_off).await.filter(|blocks| *blocks == 0.0)
    })
    .await;
    proxy.becomes(Network::Up);
    cluster.ready().await;
    for i in 0..4 {
        let events = http.stream("/v1/chat/completions", &chat(i, 8), |_| {}).await.unwrap();
        assert_eq!(assemble(&events).unwrap()[0].1.as_deref(), Some("length"));
    }
    cluster.settled(Duration::from_secs(5)).await;
}

/// The stream of a request that engines died of ends with their fault.
fn assert_gave_up(events: &[Event], cluster: &Cluster) {
    let last: Value = serde_json::from_str(&events.last().unwrap().data).unwrap();
    assert_eq!(last["error"]["code"], "engine_fault", "{last}\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_which_engines_die_fails_alone_after_the_third() {
    // Each dies before the request gets much further.
    let slow = ["--step-floor-ms", "100"];
    let mut cluster = Cluster::start(Plan::of(toy()).replicas(1, 1, 4).with(Service::Decode, &slow)).await;
    let http = cluster.http();
    let poison = tokio::spawn({
        let http = http.clone();
        async move { http.stream("/v1/chat/completions", &chat(1, 1500), |_| {}).await }
    });
    for _ in 0..3 {
        let engine = cluster.engine_with_a_run(Duration::from_secs(10)).await;
        cluster.child(Service::Decode, engine).kill();
    }
    assert_gave_up(&poison.await.unwrap().unwrap(), &cluster);

    let events = http.stream("/v1/chat/completions", &chat(2, 8), |_| {}).await.unwrap();
    assert_eq!(assemble(&events).unwrap()[0].1.as_deref(), Some("length"), "the fourth engine serves others");
    cluster.settled(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_that_computes_its_prompt_is_one_of_the_three_that_may_die_of_it() {
    let always_remote = ["--remote-prefill-tokens", "1", "--remote-prefill-slack", "1000000"];
    let slow = ["--step-floor-ms", "100", "--chunked-prefill-size", "32"];
    let plan = Plan::of(toy()).replicas(1, 1, 3).prefills(2).with(Service::Router, &always_remote);
    let plan = plan.with(Service::Prefill, &slow).with(Service::Decode, &slow);
    let mut cluster = Cluster::start(plan).await;
    let http = cluster.http();
    let long = json!({
        "model": "toy", "stream": true, "max_tokens": 1000, "ignore_eos": true,
        "messages": [{"role": "user", "content": "a request that kills. ".repeat(24)}],
    });
    let poison = tokio::spawn({
        let http = http.clone();
        async move { http.stream("/v1/chat/completions", &long, |_| {}).await }
    });
    let prefill = cluster.one_with_a_run(Service::Prefill, Duration::from_secs(10)).await;
    cluster.child(Service::Prefill, prefill).kill();
    for _ in 0..2 {
        let engine = cluster.engine_with_a_run(Duration::from_secs(10)).await;
        cluster.child(Service::Decode, engine).kill();
    }
    assert_gave_up(&poison.await.unwrap().unwrap(), &cluster);

    let events = http.stream("/v1/chat/completions", &chat(2, 8), |_| {}).await.unwrap();
    assert_eq!(
        assemble(&events).unwrap()[0].1.as_deref(),
        Some("length"),
        "those that are left serve others"
    );
    cluster.settled(Duration::from_secs(5)).await;
}
