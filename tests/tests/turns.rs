//! Whose turn it is when requests wait in the router, and what becomes of those whose time is over.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Service,
    cluster::{Plan, figure},
    eventually,
    http::{Http, Reply},
    model::toy,
};
use tokio::{sync::mpsc, task::JoinHandle};

const SOON: Duration = Duration::from_secs(10);
/// One request runs at a time, 6 ms a token; all others wait in the router.
const ONE_AT_A_TIME: [&str; 4] = ["--device", "sim", "--max-running-requests", "1"];

fn plan() -> Plan {
    Plan::of(toy()).with(Service::Decode, &ONE_AT_A_TIME).with(Service::Router, &["--queue-above", "1"])
}

fn chat(max_tokens: u32) -> Value {
    json!({
        "model": "toy", "max_tokens": max_tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "what is there to say?"}],
    })
}

async fn ask(http: &Http, headers: &[(&str, &str)], body: &Value) -> Reply {
    let body = serde_json::to_vec(body).unwrap().into();
    http.send("POST", "/v1/chat/completions", headers, body).await.unwrap()
}

/// Has a request run that takes longer than any test; until it is aborted.
async fn occupy(
    cluster: &mut Cluster,
    headers: &'static [(&'static str, &'static str)],
) -> JoinHandle<Reply> {
    let http = cluster.http();
    let occupant = tokio::spawn(async move { ask(&http, headers, &chat(3500)).await });
    cluster.engine_with_a_run(SOON).await;
    occupant
}

async fn queued(cluster: &mut Cluster, requests: usize) {
    let router = Http::at(&cluster.admin_addresses("router")[0]);
    eventually("they wait in the router", SOON, async || {
        let page = router.get("/metrics").await.ok()?.body;
        (figure(&page, "stator_router_queued") == Some(requests as f64)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_what_waits_in_the_router() {
    let mut cluster = Cluster::start(plan()).await;
    let occupant = occupy(&mut cluster, &[]).await;
    let (http, began) = (cluster.http(), Instant::now());
    let waiting =
        tokio::spawn(async move { ask(&http, &[("x-request-deadline-ms", "1500")], &chat(4)).await });
    queued(&mut cluster, 1).await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (504, Some("deadline_exceeded")));
    let took = began.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(6)).contains(&took), "{took:?}");
    queued(&mut cluster, 0).await;
    assert!(!occupant.is_finished(), "nobody else was ended");
    occupant.abort();
    cluster.settled(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_what_runs_streamed_or_not() {
    let mut cluster = Cluster::start(plan()).await;
    let deadline = [("x-request-deadline-ms", "1500")];
    let reply = ask(&cluster.http(), &deadline, &chat(3500)).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (504, Some("deadline_exceeded")));
    let mut streamed = chat(3500);
    streamed["stream"] = true.into();
    let reply = ask(&cluster.http(), &deadline, &streamed).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let events: Vec<&str> = reply.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert!(events.len() > 10, "{}", reply.body);
    let errors = events.iter().filter(|event| event.contains("deadline_exceeded")).count();
    assert_eq!(errors, 1, "{}", reply.body);
    cluster.settled(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priorities_go_first_and_tenants_take_turns() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "many key-of-many\nfew key-of-few\n").unwrap();
    let keys = ["--api-key-file", keys.path().to_str().unwrap()];
    let mut cluster = Cluster::start(plan().with(Service::Ingress, &keys)).await;
    const MANY: (&str, &str) = ("authorization", "Bearer key-of-many");
    const FEW: (&str, &str) = ("authorization", "Bearer key-of-few");
    let occupant = occupy(&mut cluster, &[MANY]).await;

    let (answered, mut answers) = mpsc::channel(8);
    let waiting = [(MANY, 0), (MANY, 0), (MANY, 0), (MANY, 0), (FEW, 0), (MANY, 1)];
    for (place, (tenant, priority)) in waiting.into_iter().enumerate() {
        let (http, answered) = (cluster.http(), answered.clone());
        tokio::spawn(async move {
            let mut body = chat(4);
            body["priority"] = priority.into();
            let reply = ask(&http, &[tenant], &body).await;
            answered.try_send((place, reply.status)).unwrap();
        });
        queued(&mut cluster, place + 1).await;
    }
    occupant.abort();
    let mut order = Vec::new();
    for _ in waiting {
        let (place, status) = tokio::time::timeout(SOON, answers.recv()).await.unwrap().unwrap();
        assert_eq!(status, 200);
        order.push(place);
    }
    assert_eq!(order[0], 5, "the higher priority goes first: {order:?}");
    let of_few = order.iter().position(|place| *place == 4).unwrap();
    assert!(of_few <= 2, "who has one request waits for no more than one of who has many: {order:?}");
    let of_many: Vec<usize> = order.iter().copied().filter(|place| *place < 4).collect();
    assert_eq!(of_many, [0, 1, 2, 3], "each tenant's own go in order");
}
