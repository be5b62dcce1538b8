//! Prompts computed by a prefill engine: the same tokens as without one, whatever becomes of it midway.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{os::unix::fs::PermissionsExt, time::Duration};

use serde_json::{Value, json};
use stator_tests::{
    Cluster, Network, Proxy, Service, Signal, cluster::Plan, eventually, free_port, http::Http, model::toy,
};

/// Whatever a prefill engine could compute is sent there.
const ALWAYS_REMOTE: [&str; 4] = ["--remote-prefill-tokens", "1", "--remote-prefill-slack", "1000000"];
/// A prefill engine so slow that it can be disturbed while it computes.
const SLOW: [&str; 4] = ["--step-floor-ms", "100", "--chunked-prefill-size", "32"];
const SLOTS: f64 = 16.0;
/// Tokens of a block.
const PAGE: u64 = 16;

fn plan(transport: &str) -> Plan {
    plan_of(transport, transport)
}

fn plan_of(prefill: &str, decode: &str) -> Plan {
    let engine = |transport| ["--kv-transport", transport, "--transfer-slots", "16"];
    Plan::of(toy())
        .prefills(1)
        .with(Service::Router, &ALWAYS_REMOTE)
        .with(Service::Prefill, &engine(prefill))
        .with(Service::Decode, &engine(decode))
}

fn chat(prompt: &str) -> Value {
    json!({
        "model": "toy", "messages": [{"role": "user", "content": prompt}],
        "temperature": 0, "max_tokens": 24, "ignore_eos": true,
    })
}

fn long(topic: &str) -> String {
    format!("what is there to say of {topic}? ").repeat(24)
}

/// Greedy, two seeded choices, a prompt that continues an earlier one, and one that was there before.
fn requests() -> Vec<Value> {
    let mut seeded = chat(&long("the sea"));
    (seeded["temperature"], seeded["seed"], seeded["n"]) = (json!(1.0), json!(7), json!(2));
    let longer = long("the moon") + &long("the stars");
    vec![chat(&long("the moon")), seeded, chat(&longer), chat(&long("the moon"))]
}

async fn texts(http: &Http, request: &Value) -> Vec<String> {
    let reply = http.post("/v1/chat/completions", request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = reply.json();
    let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    reply["choices"].as_array().unwrap().iter().map(text).collect()
}

/// What one engine alone answers.
async fn undisturbed(requests: &[Value]) -> Vec<Vec<String>> {
    alone(Plan::of(toy()), requests).await
}

async fn alone(plan: Plan, requests: &[Value]) -> Vec<Vec<String>> {
    let cluster = Cluster::start(plan).await;
    let mut answers = Vec::new();
    for request in requests {
        answers.push(texts(&cluster.http(), request).await);
    }
    answers
}

/// A figure of the only engine of a role; `name` with its labels as the metrics page shows them.
async fn figure(cluster: &mut Cluster, role: &str, name: &str) -> f64 {
    let address = cluster.admin_addresses(role).pop().expect("an engine runs");
    let page = Http::at(&address).get("/metrics").await.map(|reply| reply.body).unwrap_or_default();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or(0.0)
}

async fn outcomes(cluster: &mut Cluster, outcome: &str) -> f64 {
    let name = format!("stator_engine_remote_prefills_total{{outcome=\"{outcome}\"}}");
    figure(cluster, "decode", &name).await
}

async fn becomes(cluster: &mut Cluster, role: &str, name: &str, right: impl Fn(f64) -> bool) {
    let what = format!("{name} of {role}");
    eventually(&what, Duration::from_secs(30), async || {
        right(figure(cluster, role, name).await).then_some(())
    })
    .await;
}

/// No slot, block or run is held any more.
async fn clean(cluster: &mut Cluster) {
    becomes(cluster, "decode", "stator_kv_slots{state=\"free\"}", |slots| slots == SLOTS).await;
    cluster.settled(Duration::from_secs(10)).await;
    if !cluster.running(Service::Prefill).is_empty() {
        for name in ["stator_engine_runs_live", "stator_engine_kv_blocks_used"] {
            becomes(cluster, "prefill", name, |held| held == 0.0).await;
        }
    }
}

/// Sends a request whose prompt a slow prefill engine computes; returns once some of it has landed.
async fn midway(cluster: &mut Cluster, request: &Value) -> tokio::task::JoinHandle<Vec<String>> {
    let (http, request) = (cluster.http(), request.clone());
    let answer = tokio::spawn(async move { texts(&http, &request).await });
    becomes(cluster, "decode", "stator_kv_transfer_bytes_total{direction=\"in\"}", |bytes| bytes > 0.0).await;
    answer
}

async fn gives_the_same_tokens_over(transport: &str) {
    let expected = undisturbed(&requests()).await;
    let mut cluster = Cluster::start(plan(transport)).await;
    let http = cluster.http();
    for (request, expected) in requests().iter().zip(&expected) {
        assert_eq!(texts(&http, request).await, *expected, "{}", cluster.logs());
    }
    let done = outcomes(&mut cluster, "done").await;
    assert!(done >= 3.0, "{done} prompts were handed over\n{}", cluster.logs());
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_computed_elsewhere_gives_the_same_tokens_over_shared_memory() {
    gives_the_same_tokens_over("shm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_computed_elsewhere_gives_the_same_tokens_over_tcp() {
    gives_the_same_tokens_over("tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_sockets_have_no_folder_of_their_own_pages_come_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let request = chat(&long("the moon"));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    let flags = ["--kv-socket-folder", folder.path().to_str().unwrap()];
    let mut cluster = Cluster::start(plan("auto").with(Service::Decode, &flags)).await;
    assert_eq!(texts(&cluster.http(), &request).await, expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "done").await, 1.0, "{}", cluster.logs());
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_what_a_cache_held_here_or_there_and_not_what_was_computed() {
    let mut cluster = Cluster::start(plan("auto").ingresses(1)).await;
    let request = chat(&long("the moon"));
    let cached = async |cluster: &Cluster| {
        let reply = cluster.http().post("/v1/chat/completions", &request).await.unwrap().json();
        let usage = &reply["usage"];
        let of = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{reply}"));
        (of(&usage["prompt_tokens_details"]["cached_tokens"]), of(&usage["prompt_tokens"]))
    };
    let (cold, prompt) = cached(&cluster).await;
    assert_eq!(cold, 0, "all of it was computed for this request");
    let handed_over = (prompt - 1) / PAGE * PAGE;
    assert!(handed_over > 0 && outcomes(&mut cluster, "done").await == 1.0, "{}", cluster.logs());

    // An engine that knows nothing, beside the prefill engine that knows the prompt.
    cluster.add(Service::Decode);
    cluster.child(Service::Decode, 0).kill();
    let (warm, _) = cached(&cluster).await;
    assert_eq!(warm, handed_over, "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "done").await, 1.0, "{}", cluster.logs());
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_engine_killed_midway_costs_nothing_but_time() {
    let request = chat(&long("the moon"));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    let mut cluster = Cluster::start(plan("auto").with(Service::Prefill, &SLOW)).await;
    let answer = midway(&mut cluster, &request).await;
    cluster.child(Service::Prefill, 0).kill();
    assert_eq!(answer.await.unwrap(), expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "done").await, 0.0, "it was killed before it was done");
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_engine_that_wakes_after_its_slots_were_taken_back_corrupts_nothing() {
    let requests = [chat(&long("the moon")), chat(&long("the sun"))];
    let expected = undisturbed(&requests).await;
    for transport in ["shm", "tcp"] {
        let mut cluster = Cluster::start(plan(transport).with(Service::Prefill, &SLOW)).await;
        let answer = midway(&mut cluster, &requests[0]).await;
        cluster.child(Service::Prefill, 0).signal(Signal::STOP);
        assert_eq!(answer.await.unwrap(), expected[0], "{transport}\n{}", cluster.logs());
        cluster.child(Service::Prefill, 0).signal(Signal::CONT);
        for (request, expected) in requests.iter().zip(&expected) {
            assert_eq!(texts(&cluster.http(), request).await, *expected, "{transport}\n{}", cluster.logs());
        }
        clean(&mut cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_engine_that_does_not_answer_is_done_without() {
    let requests = [chat(&long("the moon")), chat(&long("the sun"))];
    let expected = undisturbed(&requests).await;
    let mut cluster = Cluster::start(plan("auto")).await;
    cluster.child(Service::Prefill, 0).signal(Signal::STOP);
    for (request, expected) in requests.iter().zip(&expected) {
        assert_eq!(texts(&cluster.http(), request).await, *expected, "{}", cluster.logs());
    }
    assert_eq!(outcomes(&mut cluster, "unanswered").await, 1.0, "only one waited\n{}", cluster.logs());
    cluster.child(Service::Prefill, 0).signal(Signal::CONT);
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_pushed_out_at_its_prefill_engine_is_handed_over_all_the_same() {
    let longer = chat(&(long("the moon") + &long("the stars")));
    let mut urgent = chat(&long("the sun"));
    urgent["priority"] = json!(1);
    let expected = undisturbed(&[longer.clone(), urgent.clone()]).await;
    // Decode lends slots for fewer blocks than a step computes, and is busy for as long as all this takes.
    let plan = plan("auto")
        .with(Service::Router, &["--remote-prefill-patience-ms", "60000"])
        .with(Service::Prefill, &["--max-running-requests", "1"])
        .with(Service::Prefill, &["--step-floor-ms", "200", "--chunked-prefill-size", "128"])
        .with(Service::Decode, &["--step-floor-ms", "200"]);
    let mut cluster = Cluster::start(plan).await;
    let answer = midway(&mut cluster, &longer).await;
    assert_eq!(texts(&cluster.http(), &urgent).await, expected[1], "{}", cluster.logs());
    assert_eq!(answer.await.unwrap(), expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "done").await, 2.0, "{}", cluster.logs());
    becomes(&mut cluster, "prefill", "stator_engine_preemptions_total", |times| times > 0.0).await;
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_whose_blocks_do_not_come_is_computed_here() {
    let request = chat(&long("the moon"));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    let pages = format!("127.0.0.1:{}", free_port());
    let road = Proxy::to(pages.clone()).await.unwrap();
    let reached_at = road.address().to_string();
    let plan = plan("tcp")
        .with(Service::Prefill, &SLOW)
        .with(Service::Decode, &["--kv-listen", &pages, "--kv-advertise", &reached_at]);
    let mut cluster = Cluster::start(plan).await;
    let answer = midway(&mut cluster, &request).await;
    road.becomes(Network::Silent);
    assert_eq!(answer.await.unwrap(), expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "stalled").await, 1.0, "{}", cluster.logs());
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_a_prompt_is_computed_elsewhere_frees_both_engines() {
    let mut cluster = Cluster::start(plan("auto").with(Service::Prefill, &SLOW)).await;
    let body = serde_json::to_vec(&chat(&long("the moon"))).unwrap().into();
    let headers = [("x-request-deadline-ms", "600")];
    let reply = cluster.http().send("POST", "/v1/chat/completions", &headers, body).await.unwrap();
    assert_eq!(reply.status, 504, "{}", reply.body);
    clean(&mut cluster).await;
    assert_eq!(outcomes(&mut cluster, "done").await, 0.0, "{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_midway_frees_both_engines() {
    let mut cluster = Cluster::start(plan("auto").with(Service::Prefill, &SLOW)).await;
    let answer = midway(&mut cluster, &chat(&long("the moon"))).await;
    answer.abort();
    clean(&mut cluster).await;
    assert_eq!(outcomes(&mut cluster, "cancelled").await, 1.0, "{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_whose_pages_differ_do_not_exchange_them() {
    let request = chat(&long("the moon"));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    // Pages of other sizes are not taken by who takes whatever can be rearranged.
    for (other, taker) in
        [(["--page-size", "32"], &["--foreign-prefill"][..]), (["--kv-cache-dtype", "f32"], &[])]
    {
        let plan = plan("auto").with(Service::Prefill, &other).with(Service::Decode, taker);
        let mut cluster = Cluster::start(plan).await;
        assert_eq!(texts(&cluster.http(), &request).await, expected[0], "{}", cluster.logs());
        for outcome in ["done", "refused"] {
            assert_eq!(outcomes(&mut cluster, outcome).await, 0.0, "the router names none that is of no use");
        }
        assert_eq!(weighed(&mut cluster, &chat(&long("the sun"))).await["verdict"], "other-layout");
        clean(&mut cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_another_type_are_rearranged_where_they_land() {
    let greedy = ["the moon", "the sea", "the stars", "the sun"].map(|topic| chat(&long(topic)));
    for (transport, theirs, ours) in [("shm", "f32", "f16"), ("tcp", "f16", "f32")] {
        let kept = ["--kv-cache-dtype", ours];
        let expected = alone(Plan::of(toy()).with(Service::Decode, &kept), &greedy).await;
        let plan = plan(transport)
            .with(Service::Prefill, &["--kv-cache-dtype", theirs])
            .with(Service::Decode, &kept)
            .with(Service::Decode, &["--foreign-prefill"]);
        let mut cluster = Cluster::start(plan).await;
        let http = cluster.http();
        for (request, expected) in greedy.iter().zip(&expected) {
            assert_eq!(texts(&http, request).await, *expected, "{theirs} to {ours}\n{}", cluster.logs());
        }
        let done = outcomes(&mut cluster, "done").await;
        assert_eq!(done, greedy.len() as f64, "{}", cluster.logs());
        clean(&mut cluster).await;
    }
}

/// What the router weighed of where this prompt should be computed.
async fn weighed(cluster: &mut Cluster, request: &Value) -> Value {
    let label = format!("weighed-{}", rand::random::<u64>());
    let body = serde_json::to_vec(request).unwrap().into();
    let headers = [("x-request-id", label.as_str())];
    let reply = cluster.http().send("POST", "/v1/chat/completions", &headers, body).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let admin = Http::at(&cluster.admin_addresses("router")[0]);
    let decisions = admin.get(&format!("/admin/decisions/{label}")).await.unwrap().json();
    decisions[0]["remote_prefill"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_tells_what_a_prompt_would_take_here_and_there() {
    let mut cluster = Cluster::start(plan("auto")).await;
    let told = weighed(&mut cluster, &chat(&long("the moon"))).await;
    assert_eq!(told["verdict"], "named", "{told}");
    let lacks = told["here"]["missing_tokens"].as_u64().unwrap();
    assert!(lacks > 100 && told["there"]["missing_tokens"].as_u64() == Some(lacks), "{told}");
    assert!(told["there"]["instance"].as_str().unwrap().starts_with("prefill-"));
    let ms = |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("{told}"));
    assert!(ms("there_ms") > ms("transfer_ms") && ms("there_ms") <= ms("there_at_most_ms"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_engine_whose_blocks_do_not_get_through_is_named_no_more() {
    let request = chat(&long("the moon"));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    let mut cluster = Cluster::start(plan_of("shm", "tcp")).await;
    assert_eq!(texts(&cluster.http(), &request).await, expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "failed").await, 1.0, "{}", cluster.logs());
    let mut prompts = 0;
    eventually("the router passes it over", Duration::from_secs(10), async || {
        prompts += 1;
        let told = weighed(&mut cluster, &chat(&long(&format!("star number {prompts}")))).await;
        (told["verdict"] == "shunned" && told["shunned"] == 1).then_some(())
    })
    .await;
    assert_eq!(outcomes(&mut cluster, "failed").await, 1.0, "it is asked nothing");
    clean(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_choices_of_a_prompt_need_it_computed_once() {
    let mut request = chat(&long("the moon"));
    (request["temperature"], request["seed"], request["n"]) = (json!(1.0), json!(7), json!(3));
    let expected = undisturbed(std::slice::from_ref(&request)).await;
    let mut cluster = Cluster::start(plan("auto")).await;
    assert_eq!(texts(&cluster.http(), &request).await, expected[0], "{}", cluster.logs());
    assert_eq!(outcomes(&mut cluster, "done").await, 1.0, "{}", cluster.logs());
    becomes(&mut cluster, "prefill", "stator_engine_push_seconds_count", |pushes| pushes == 1.0).await;
    clean(&mut cluster).await;
}
