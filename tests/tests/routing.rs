//! Routing by what engines have cached.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Service, Signal,
    cluster::{Plan, figure},
    eventually,
    http::{Http, Reply},
    model::toy,
};

const PROMPTS: usize = 7;
const ROUNDS: usize = 3;

fn chat(prompt: usize, question: usize) -> Value {
    let system = format!("You are assistant number {prompt}. ").repeat(15);
    json!({
        "model": "toy", "temperature": 0, "max_tokens": 4, "ignore_eos": true,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": format!("question {question}")},
        ],
    })
}

async fn ask(http: &Http, headers: &[(&str, &str)], body: &Value) -> Reply {
    let body = serde_json::to_vec(body).unwrap().into();
    let reply = http.send("POST", "/v1/chat/completions", headers, body).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply
}

/// Prompt tokens that caches held, of all, when each of several system prompts is used a few times.
async fn cached_share(policy: &str) -> f64 {
    let plan = Plan::of(toy()).replicas(1, 1, 4).with(Service::Router, &["--policy", policy]);
    let mut cluster = Cluster::start(plan).await;
    followed(&mut cluster, 4).await;
    let (mut cached, mut all) = (0, 0);
    for round in 0..ROUNDS {
        for prompt in 0..PROMPTS {
            let usage = ask(&cluster.http(), &[], &chat(prompt, round)).await.json()["usage"].clone();
            cached += usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            all += usage["prompt_tokens"].as_u64().unwrap();
            told(&mut cluster, (round * PROMPTS + prompt + 1) as f64).await;
        }
    }
    cached as f64 / all as f64
}

async fn router_figure(cluster: &mut Cluster, router: usize, name: &str) -> Option<f64> {
    let admin = cluster.admin_addresses("router").get(router)?.clone();
    figure(&Http::at(&admin).get("/metrics").await.ok()?.body, name)
}

/// Waits until the first router follows so many caches.
async fn followed(cluster: &mut Cluster, engines: usize) {
    eventually("every cache is followed", Duration::from_secs(10), async || {
        let taken = router_figure(cluster, 0, "stator_router_kv_snapshots_total").await?;
        (taken >= engines as f64).then_some(())
    })
    .await;
}

/// Waits until engines have told what so many dispatches found.
async fn told(cluster: &mut Cluster, dispatches: f64) {
    eventually("the engine tells what it found", Duration::from_secs(10), async || {
        let checked = router_figure(cluster, 0, "stator_router_predictions_checked_total").await?;
        (checked >= dispatches).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_caches_more_of_shared_prompts_is_found_than_by_turns() {
    let (kv, turns) = (cached_share("kv").await, cached_share("round-robin").await);
    println!("cached share of prompt tokens: kv {kv:.3}, round-robin {turns:.3}");
    assert!(kv > turns + 0.1, "kv {kv:.3}, round-robin {turns:.3}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_can_be_read_back_with_what_the_engine_found() {
    let mut cluster = Cluster::start(Plan::of(toy())).await;
    followed(&mut cluster, 1).await;
    ask(&cluster.http(), &[], &chat(0, 0)).await;
    told(&mut cluster, 1.0).await;
    eventually("the router knows the blocks of that prompt", Duration::from_secs(10), async || {
        router_figure(&mut cluster, 0, "stator_router_index_blocks").await.filter(|blocks| *blocks > 20.0)
    })
    .await;
    let reply =
        ask(&cluster.http(), &[("x-request-id", "tell-me"), ("x-stator-explain", "1")], &chat(0, 1)).await;
    told(&mut cluster, 2.0).await;
    let admin = Http::at(&cluster.admin_addresses("router")[0]);
    let decisions = admin.get("/admin/decisions/tell-me").await.unwrap().json();
    let decision = &decisions[0];
    assert_eq!(decision["outcome"], "accepted");
    assert_eq!(decision["candidates"].as_array().unwrap().len(), 1);
    assert_eq!(decision["chosen"], decision["candidates"][0]["instance"]);
    let predicted = decision["predicted_cached_tokens"].as_u64().unwrap();
    assert!(predicted > 300, "{decision}");
    assert_eq!(decision["cached_tokens"].as_u64(), Some(predicted));
    let id = reply.headers.get("x-stator-requests").unwrap().to_str().unwrap();
    assert_eq!(admin.get(&format!("/admin/decisions/{id}")).await.unwrap().json(), decisions);
    assert_eq!(admin.get("/admin/decisions/unheard-of").await.unwrap().status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_share_a_process_are_instances_of_their_own() {
    let plan = Plan::of(toy())
        .with(Service::Decode, &["--device", "sim", "--sim-engines", "3"])
        .with(Service::Router, &["--policy", "round-robin"]);
    let mut cluster = Cluster::start(plan).await;
    followed(&mut cluster, 3).await;
    let admin = Http::at(&cluster.admin_addresses("router")[0]);
    let mut engines = std::collections::BTreeSet::new();
    for number in 0..3 {
        let name = format!("turn-{number}");
        ask(&cluster.http(), &[("x-request-id", &name)], &chat(number, 0)).await;
        let decision = admin.get(&format!("/admin/decisions/{name}")).await.unwrap().json()[0].clone();
        engines.insert(decision["chosen"].as_str().unwrap().to_owned());
    }
    assert_eq!(engines.len(), 3, "{engines:?}");
    cluster.child(Service::Decode, 0).signal(Signal::TERM);
    let http = cluster.http();
    eventually("all have given their leases back", Duration::from_secs(10), async || {
        let health = http.get("/health").await.ok()?.json();
        health["cluster"]["instances"].get("decode").is_none_or(|count| *count == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_only_engine_restarts_waits_in_the_router_and_is_answered() {
    let engine = ["--device", "sim", "--max-running-requests", "1", "--max-queued-requests", "4"];
    let mut cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &engine)).await;
    cluster.child(Service::Decode, 0).kill();
    let asked: Vec<_> = (0..30)
        .map(|n| {
            let http = cluster.http();
            tokio::spawn(async move { ask(&http, &[], &chat(n, 0)).await })
        })
        .collect();
    eventually("they wait", Duration::from_secs(10), async || {
        router_figure(&mut cluster, 0, "stator_router_queued").await.filter(|queued| *queued >= 25.0)
    })
    .await;
    cluster.add(Service::Decode);
    for asked in asked {
        asked.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_router_has_no_room_for_is_refused_once() {
    let engine = ["--device", "sim", "--max-running-requests", "1", "--step-floor-ms", "10"];
    let plan =
        Plan::of(toy()).with(Service::Decode, &engine).with(Service::Router, &["--max-queued-requests", "1"]);
    let mut cluster = Cluster::start(plan).await;
    followed(&mut cluster, 1).await;
    let mut long = chat(0, 0);
    long["max_tokens"] = 300.into();
    let body: Vec<u8> = serde_json::to_vec(&long).unwrap();
    let asked = (0..8).map(|_| {
        let (http, body) = (cluster.http(), body.clone().into());
        tokio::spawn(async move { http.send("POST", "/v1/chat/completions", &[], body).await.unwrap() })
    });
    let asked: Vec<_> = asked.collect();
    let mut refused = 0;
    for asked in asked {
        let reply = asked.await.unwrap();
        if reply.status != 200 {
            assert_eq!(reply.json()["error"]["code"], "overloaded", "{}", reply.body);
            assert!(reply.headers.contains_key("retry-after"));
            refused += 1;
        }
    }
    assert!(refused >= 4, "{refused} were refused");
    let refusals = router_figure(&mut cluster, 0, "stator_router_refusals_total").await;
    assert_eq!(refusals, Some(f64::from(refused)), "each was refused once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_too_small_for_a_request_does_not_get_it_to_refuse() {
    let mut cluster =
        Cluster::start(Plan::of(toy()).with(Service::Router, &["--policy", "round-robin"])).await;
    let nats = cluster.nats[0].url();
    cluster.add_over(Service::Decode, &nats, &["--max-total-tokens".to_owned(), "128".to_owned()]);
    cluster.ready().await;
    followed(&mut cluster, 2).await;
    for question in 0..4 {
        ask(&cluster.http(), &[], &chat(0, question)).await;
    }
    let mut short = chat(0, 0);
    short["messages"] = json!([{"role": "user", "content": "in short?"}]);
    for _ in 0..4 {
        ask(&cluster.http(), &[], &short).await;
    }
    cluster.child(Service::Decode, 0).kill();
    eventually("nobody is left that is large enough", Duration::from_secs(20), async || {
        let body = serde_json::to_vec(&chat(0, 0)).unwrap().into();
        let reply = cluster.http().send("POST", "/v1/chat/completions", &[], body).await.unwrap();
        (reply.status == 400).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_of_unequal_room_keep_a_limit_that_is_named_and_are_the_limit_where_none_is() {
    let engines = ["--device", "sim", "--sim-step-ms", "0"];
    for smaller in ["--max-total-tokens", "--context-length"] {
        let plan = Plan::of(toy()).with(Service::Decode, &engines);
        let mut cluster = Cluster::start(plan.with(Service::Router, &["--policy", "round-robin"])).await;
        let nats = cluster.nats[0].url();
        cluster.add_over(Service::Decode, &nats, &[smaller.to_owned(), "1024".to_owned()]);
        cluster.ready().await;
        followed(&mut cluster, 2).await;
        let mut tokens = BTreeSet::new();
        for _ in 0..4 {
            let mut open = chat(0, 0);
            open.as_object_mut().unwrap().remove("max_tokens");
            let reply = ask(&cluster.http(), &[], &open).await.json();
            assert_eq!(reply["choices"][0]["finish_reason"], "length");
            tokens.insert(reply["usage"]["total_tokens"].as_u64().unwrap());
        }
        assert_eq!(tokens, [1024, 4096].into(), "{smaller}");
        for _ in 0..4 {
            let mut limited = chat(0, 0);
            limited["max_tokens"] = 1000.into();
            let reply = ask(&cluster.http(), &[], &limited).await.json();
            assert_eq!(reply["usage"]["completion_tokens"], 1000, "{smaller}");
        }
    }
}
