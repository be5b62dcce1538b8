//! Clients that misbehave or come in crowds; afterwards nothing is leaked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Service,
    cluster::{Plan, figure},
    eventually,
    http::{Http, assemble},
    model::toy,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

fn chat(i: usize, max_tokens: u32, stream: bool) -> Value {
    json!({
        "model": "toy", "stream": stream, "max_tokens": max_tokens, "ignore_eos": true, "seed": i,
        "messages": [{"role": "user", "content": format!("question {i}")}],
    })
}

/// Sends a request by hand and returns the open socket.
async fn open(port: u16, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    socket
}

/// Waits until no service holds anything of any request: no block and no run, no request, no open answer.
async fn nothing_is_held(cluster: &mut Cluster) {
    cluster.settled(Duration::from_secs(5)).await;
    for (role, name) in
        [("tokenizer", "stator_tokenizer_requests_live"), ("ingress", "stator_ingress_in_flight")]
    {
        for address in cluster.admin_addresses(role) {
            eventually(name, Duration::from_secs(5), async || {
                let figures = Http::at(&address).get("/metrics").await.ok()?.body;
                (figure(&figures, name) == Some(0.0)).then_some(())
            })
            .await;
        }
    }
}

/// Answers that end well, streamed and not, and clients that leave at once, all together.
async fn storm(cluster: &mut Cluster) {
    let mut leavers = Vec::new();
    for i in 0..LEAVERS {
        leavers.push(open(cluster.port, &chat(i, 2000, i % 2 == 0)).await);
    }
    let mut answers = JoinSet::new();
    for i in 0..ANSWERS {
        let http = cluster.http();
        answers.spawn(async move {
            let body = chat(i, 16, i % 2 == 0);
            if i % 2 == 0 {
                let events = http.stream("/v1/chat/completions", &body, |_| {}).await.unwrap();
                assert_eq!(assemble(&events).unwrap()[0].1.as_deref(), Some("length"));
            } else {
                assert_eq!(http.post("/v1/chat/completions", &body).await.unwrap().status, 200);
            }
        });
    }
    drop(leavers);
    while let Some(answer) = answers.join_next().await {
        answer.unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    }
    nothing_is_held(cluster).await;
}

/// Bytes resident of every service, as the kernel counts them.
fn resident(cluster: &mut Cluster) -> Vec<(Service, usize)> {
    let services = [Service::Ingress, Service::Tokenizer, Service::Router, Service::Decode];
    let of = |service| {
        let path = format!("/proc/{}/status", cluster.child(service, 0).pid());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
        (service, kib << 10)
    };
    services.map(of).into()
}

/// Requests of one storm.
const ANSWERS: usize = 250;
const LEAVERS: usize = 50;
/// Storms that fill what is kept for a while: run logs, tombstones, the allocator's own pages.
const WARM_UP: usize = 4;
/// By how much a service may grow over as many storms again: less than a page a request.
const GROWTH: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn storm_after_storm_leaks_nothing_and_takes_no_more_memory() {
    let flags = ["--max-queued-requests", "600", "--max-running-requests", "64"];
    let mut cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &flags)).await;
    for _ in 0..WARM_UP {
        storm(&mut cluster).await;
    }
    let before = resident(&mut cluster);
    for _ in 0..WARM_UP {
        storm(&mut cluster).await;
    }
    for ((service, before), (_, after)) in before.into_iter().zip(resident(&mut cluster)) {
        assert!(after <= before + GROWTH, "{service:?} grew from {before} to {after} bytes resident");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_free_their_blocks_streaming_or_not() {
    let plan =
        Plan::of(toy()).with(Service::Decode, &["--step-floor-ms", "20", "--max-running-requests", "4"]);
    let mut cluster = Cluster::start(plan).await;
    // More than run at once: some vanish while queued, some while they decode.
    let mut sockets = Vec::new();
    for i in 0..12 {
        sockets.push(open(cluster.port, &chat(i, 2000, i % 2 == 0)).await);
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    drop(sockets);
    // 2000 tokens at 20 ms would take 40 s: only a cancel can end them by then.
    cluster.settled(Duration::from_secs(4)).await;
    let reply = cluster.http().post("/v1/chat/completions", &chat(0, 4, false)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_half_requests_harm_nobody() {
    let mut cluster = Cluster::start(Plan::of(toy())).await;
    let http = cluster.http();
    let json = [("content-type", "application/json")];
    let garbage: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let reply = http.send("POST", "/v1/chat/completions", &json, garbage.into()).await.unwrap();
    assert!(matches!(reply.status, 400 | 413), "{}", reply.status);
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");

    let mut raw = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    raw.write_all(&[0xff; 4096]).await.unwrap();
    let mut half = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5000\r\n\r\n{\"model\": ")
        .await
        .unwrap();

    for body in [
        "",
        "null",
        "[]",
        "{}",
        "{\"model\": 3}",
        "{\"messages\": []}",
        "{\"model\": \"toy\", \"messages\": [{}]}",
    ] {
        let reply = http.send("POST", "/v1/chat/completions", &json, body.into()).await.unwrap();
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        assert!(reply.json()["error"]["message"].is_string(), "{body}: {}", reply.body);
    }
    assert_eq!(http.get("/v1/nothing").await.unwrap().status, 404);
    assert_eq!(http.get("/v1/chat/completions").await.unwrap().status, 405);
    drop(half);
    let reply = http.post("/v1/chat/completions", &chat(0, 4, false)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    cluster.settled(Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_streams_at_once_all_end_well() {
    let plan = Plan::of(toy())
        .with(Service::Decode, &["--max-queued-requests", "600", "--max-running-requests", "128"]);
    let mut cluster = Cluster::start(plan).await;
    let mut streams = JoinSet::new();
    for i in 0..500 {
        let http = cluster.http();
        streams.spawn(async move {
            let events = http.stream("/v1/chat/completions", &chat(i, 16, true), |_| {}).await?;
            assemble(&events)
        });
    }
    let mut ended = 0;
    while let Some(stream) = streams.join_next().await {
        let choices = stream.unwrap().unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.logs()));
        assert_eq!(choices[0].1.as_deref(), Some("length"));
        ended += 1;
    }
    assert_eq!(ended, 500);
    cluster.settled(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_beyond_the_queue_is_refused_with_a_time_to_come_back() {
    let flags = ["--step-floor-ms", "20", "--max-running-requests", "2"];
    let queue = ["--max-queued-requests", "2"];
    let plan = Plan::of(toy()).with(Service::Decode, &flags).with(Service::Decode, &queue);
    let mut cluster = Cluster::start(plan.with(Service::Router, &queue)).await;
    let mut requests = JoinSet::new();
    for i in 0..40 {
        let http = cluster.http();
        requests.spawn(async move { http.post("/v1/chat/completions", &chat(i, 40, false)).await });
    }
    let mut statuses = Vec::new();
    while let Some(reply) = requests.join_next().await {
        let reply = reply.unwrap().unwrap();
        if reply.status != 200 {
            assert!(reply.headers.contains_key("retry-after"), "{}: {}", reply.status, reply.body);
        }
        statuses.push(reply.status);
    }
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429 | 503)), "{statuses:?}");
    // At the least those that the queue holds are served; how many run by then is a matter of timing.
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 2, "{statuses:?}");
    assert!(statuses.iter().any(|status| *status != 200), "{statuses:?}");
    cluster.settled(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_everything_and_slows_nobody() {
    let mut cluster = Cluster::start(Plan::of(toy())).await;
    let mut slow = open(cluster.port, &chat(1, 400, true)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for i in 0..4 {
        let reply = cluster.http().post("/v1/chat/completions", &chat(i, 16, false)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let mut text = String::new();
    let mut piece = [0; 512];
    while !text.contains("data: [DONE]") {
        let read = slow.read(&mut piece).await.unwrap();
        assert!(read > 0, "the stream broke off: {text}");
        text.push_str(&String::from_utf8_lossy(&piece[..read]));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(text.contains("\"finish_reason\":\"length\""), "{}", &text[text.len().saturating_sub(400)..]);
    cluster.settled(Duration::from_secs(5)).await;
}

/// Kills the ingress of streams, some of which run and some wait, and others with it; nothing of them stays anywhere.
async fn leaves_nothing(others: &[Service]) {
    let engine = ["--step-floor-ms", "20", "--max-running-requests", "2"];
    let mut cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &engine)).await;
    let mut sockets = Vec::new();
    for i in 0..8 {
        sockets.push(open(cluster.port, &chat(i, 2000, true)).await);
    }
    let router = Http::at(&cluster.admin_addresses("router")[0]);
    let held = async || figure(&router.get("/metrics").await.ok()?.body, "stator_router_held");
    eventually("some wait in the router", Duration::from_secs(10), async || {
        held().await.filter(|held| *held >= 3.0)
    })
    .await;
    cluster.engine_with_a_run(Duration::from_secs(10)).await;
    cluster.child(Service::Ingress, 0).kill();
    others.iter().for_each(|other| cluster.child(*other, 0).kill());
    // 2000 tokens at 20 ms would take 40 s; its lease ends within three.
    cluster.settled(Duration::from_secs(15)).await;
    nothing_is_held(&mut cluster).await;
    eventually("the router holds nothing", Duration::from_secs(5), async || {
        held().await.filter(|held| *held == 0.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_that_dies_leaves_nothing_of_its_streams_anywhere() {
    leaves_nothing(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_does_one_whose_tokenizer_dies_with_it_and_cancels_nothing() {
    leaves_nothing(&[Service::Tokenizer]).await;
}
