//! A real router over a real nats-server, among engines that only pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod engine;

use std::{
    collections::HashSet,
    sync::OnceLock,
    time::{Duration, Instant},
};

use actors::{
    bus::{Bus, BusOptions},
    custody::{hand_over, prefer},
    process::ProcessSettings,
    suspects::Suspects,
};
use engine::Engine;
use futures_util::StreamExt;
use messages::{
    Envelope, FaultCode, InstanceId, Pool, RequestId, Role,
    block::ClusterKey,
    codec,
    control::{Control, Pong},
    frame::{Body, TextBatch, TextDelta},
    load::{Load, Started},
    subject,
    submit::{Custody, Routing, Submit},
};
use router::{RouterSettings, chain::Chain};
use stator_tests::{NatsServer, cluster::figure, eventually, free_port, http::Http};

const SOON: Duration = Duration::from_secs(10);
const KEY: &str = "stator";

/// The admin address of the one router that serves all tests of this process, each with a pool of its own. It starts
/// when it is first asked for.
fn router() -> &'static str {
    static ADMIN: OnceLock<String> = OnceLock::new();
    ADMIN.get_or_init(|| {
        let admin = format!("127.0.0.1:{}", free_port());
        let process = ProcessSettings {
            nats_url: vec![NatsServer::of_this_process().url()],
            admin_bind: admin.clone(),
            cluster_key: KEY.to_owned(),
            ..ProcessSettings::default()
        };
        std::thread::spawn(move || router::run(RouterSettings::default(), process));
        admin
    })
}

/// A pool of this test's own, and a connection to play engines and tokenizer over.
async fn stage(name: &str) -> (Bus, Pool) {
    let options = BusOptions {
        urls: vec![NatsServer::of_this_process().url()],
        namespace: "stator".parse().unwrap(),
        credentials: None,
        name: name.to_owned(),
    };
    (Bus::connect(&options).await.unwrap(), Pool::of_model(name, "00"))
}

fn submit(pool: &Pool, prompt: std::ops::Range<u32>) -> Submit {
    let [tokenizer, ingress] = ["tokenizer-1", "ingress-1"].map(|name| name.parse().unwrap());
    Submit { max_tokens: 16, ..Submit::new(pool.clone(), prompt.collect(), tokenizer, ingress) }
}

fn chain(engine: &Engine, submit: &Submit) -> Vec<u64> {
    Chain::of(&ClusterKey::derive(KEY), &engine.lease, submit).blocks
}

/// Hands a request to the router; the id under which it can be asked about.
async fn send(bus: &Bus, submit: &Submit) -> RequestId {
    let (request, accepted) = offer(bus, submit).await;
    assert!(matches!(accepted, Custody::Accepted { .. }), "{accepted:?}");
    request
}

async fn offer(bus: &Bus, submit: &Submit) -> (RequestId, Custody) {
    router();
    let (ns, pool, envelope) = (bus.namespace(), Pool::routers(), Envelope::new(RequestId::mint()));
    let answer = eventually("the router answers", SOON, async || {
        let (wait, ping) = (Duration::from_secs(1), Control::Ping { request: None, run: None });
        let all = subject::pool_control(ns, Role::Router, &pool);
        let router = bus.ask::<_, Pong>(all, None, &ping, wait).await.ok()?.instance;
        let subject = subject::instance_requests(ns, Role::Router, &pool, &router);
        bus.ask::<_, Custody>(subject, Some(&envelope), submit, wait).await.ok()
    })
    .await;
    (envelope.request, answer)
}

async fn router_figure(name: &str) -> f64 {
    let page = Http::at(router()).get("/metrics").await.ok();
    page.and_then(|page| figure(&page.body, name)).unwrap_or(0.0)
}

/// Sends requests until one of them goes to that engine.
async fn until_it_goes_to(bus: &Bus, engine: &Engine, submit: &Submit) -> (RequestId, Submit) {
    eventually("requests go where the prefix is", SOON, async || {
        let id = send(bus, submit).await;
        let taken = tokio::time::timeout(Duration::from_millis(500), engine.took()).await.ok()?;
        let decision = decisions(id).await[0].clone();
        (decision["predicted_cached_tokens"].as_u64() > Some(0)).then_some((id, taken))
    })
    .await
}

async fn decisions(id: RequestId) -> serde_json::Value {
    Http::at(router()).get(&format!("/admin/decisions/{id}")).await.unwrap().json()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_events_say_that_their_prefix_is() {
    let (bus, pool) = stage("events").await;
    let engines = [Engine::start(&bus, &pool, []).await, Engine::start(&bus, &pool, []).await];
    let request = submit(&pool, 0..200);
    engines[1].store(&chain(&engines[1], &request), true);
    let (id, taken) = until_it_goes_to(&bus, &engines[1], &request).await;
    assert!(taken.run.is_some() && taken.dispatch.is_some());

    let (router, number) = taken.dispatch.unwrap();
    engines[1].report(|load| {
        load.seen = vec![(router.clone(), number)];
        load.started = vec![Started { router, number, cached_tokens: 176 }];
    });
    let told = eventually("the decision tells what was found", SOON, async || {
        let decision = decisions(id).await[0].clone();
        decision["cached_tokens"].is_u64().then_some(decision)
    })
    .await;
    assert_eq!(
        (told["predicted_cached_tokens"].as_u64(), told["cached_tokens"].as_u64()),
        (Some(192), Some(176))
    );
    assert_eq!(told["chosen"].as_str(), Some(engines[1].instance().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_of_one_model_may_differ_in_page_size_and_each_is_found_by_what_it_caches() {
    let (bus, pool) = stage("pages").await;
    let sizes = [16, 64, 24];
    let mut engines = Vec::new();
    for size in sizes {
        engines.push(Engine::start_paged(&bus, &pool, size).await);
    }
    for (at, (engine, size)) in engines.iter().zip(sizes).enumerate() {
        let at = 1000 * at as u32;
        let request = submit(&pool, at..at + 200);
        engine.store(&chain(engine, &request), true);
        let (id, _) = until_it_goes_to(&bus, engine, &request).await;
        let decision = decisions(id).await[0].clone();
        assert_eq!(
            decision["predicted_cached_tokens"].as_u64(),
            Some((200 / size * size).into()),
            "{decision}"
        );
        assert_eq!(decision["demand"]["page_size"], 16, "costs are in the smallest blocks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_message_said_is_learned_from_a_snapshot() {
    let (bus, pool) = stage("losses").await;
    let engines = [Engine::start(&bus, &pool, []).await, Engine::start(&bus, &pool, []).await];
    let (first, second) = (submit(&pool, 0..200), submit(&pool, 1000..1200));
    // It is followed: events are applied.
    engines[0].store(&chain(&engines[0], &first), true);
    until_it_goes_to(&bus, &engines[0], &first).await;
    engines[0].store(&chain(&engines[0], &second), false);
    engines[0].store(&[7], true);
    until_it_goes_to(&bus, &engines[0], &second).await;
    assert!(router_figure("stator_router_kv_gaps_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_last_message_shows_in_load_reports() {
    let (bus, pool) = stage("tails").await;
    let engines = [Engine::start(&bus, &pool, []).await, Engine::start(&bus, &pool, []).await];
    let (first, second) = (submit(&pool, 0..200), submit(&pool, 1000..1200));
    engines[0].store(&chain(&engines[0], &first), true);
    until_it_goes_to(&bus, &engines[0], &first).await;
    engines[0].store(&chain(&engines[0], &second), false);
    engines[0].report(|load| load.kv = Some((1, 2)));
    engines[0].report(|load| load.kv = Some((1, 2)));
    until_it_goes_to(&bus, &engines[0], &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_holds_less_than_the_index_says_is_asked_for_anew() {
    let (bus, pool) = stage("drift").await;
    let engine = Engine::start(&bus, &pool, []).await;
    let request = submit(&pool, 0..200);
    engine.store(&chain(&engine, &request), true);
    until_it_goes_to(&bus, &engine, &request).await;
    engine.forget();
    // Each time the prompt is predicted to be cached and is not found.
    eventually("the index is found to have drifted", SOON, async || {
        send(&bus, &request).await;
        let (router, number) = engine.took().await.dispatch.unwrap();
        engine.report(|load| {
            load.seen = vec![(router.clone(), number)];
            load.started = vec![Started { router, number, cached_tokens: 0 }];
        });
        (router_figure("stator_router_drift_resyncs_total").await >= 1.0).then_some(())
    })
    .await;
    eventually("the index knows better", SOON, async || {
        let id = send(&bus, &request).await;
        let dispatch = engine.took().await.dispatch.unwrap();
        engine.report(|load| load.seen = vec![dispatch]);
        (decisions(id).await[0]["predicted_cached_tokens"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_the_engine_is_full_and_go_when_it_has_room() {
    let (bus, pool) = stage("queues").await;
    let engine = Engine::start(&bus, &pool, []).await;
    let mut sent = 0;
    let waits = eventually("a request waits", SOON, async || {
        // Again and again, as engines do: the first reports may come before the router listens.
        engine.report(|load| (load.running, load.queued) = (8, 8));
        let before = router_figure("stator_router_queued_total").await;
        sent += 1;
        let request = submit(&pool, 1000 * sent..1000 * sent + 100);
        send(&bus, &request).await;
        (router_figure("stator_router_queued_total").await > before).then_some(request)
    })
    .await;
    engine.report(|_| {});
    while engine.took().await.prompt != waits.prompt {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_request_goes_to_its_engine_only() {
    let (bus, pool) = stage("pins").await;
    let engines = [Engine::start(&bus, &pool, []).await, Engine::start(&bus, &pool, []).await];
    let pinned = Submit {
        routing: Routing { pin: Some(engines[0].instance().clone()), ..Routing::default() },
        ..submit(&pool, 0..200)
    };
    engines[1].store(&chain(&engines[1], &pinned), true);
    for _ in 0..4 {
        send(&bus, &pinned).await;
        assert_eq!(engines[0].took().await.routing.pin.as_ref(), Some(engines[0].instance()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_to_nobody_is_refused_at_once_and_the_refusal_can_be_read_back() {
    let (bus, pool) = stage("strays").await;
    let engine = Engine::start(&bus, &pool, []).await;
    send(&bus, &submit(&pool, 0..100)).await;
    engine.took().await;
    let stray = Routing { pin: Some("decode-nobody".parse().unwrap()), ..Routing::default() };
    let (request, answer) = offer(&bus, &Submit { routing: stray, ..submit(&pool, 0..100) }).await;
    let Custody::Refused(fault) = answer else { panic!("{answer:?}") };
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("x-stator-instance")));
    let told = decisions(request).await[0].clone();
    let words = [&told["outcome"], &told["why"]["code"]].map(serde_json::Value::as_str);
    assert_eq!(words, [Some("refused"), Some("invalid_request")]);

    let unknown = Http::at(router()).get("/admin/decisions/nobody-asked-this").await.unwrap();
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"]["message"].as_str().unwrap().contains("Each router keeps its own"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_full_engine_refuses_waits_and_is_offered_again() {
    let (bus, pool) = stage("refusals").await;
    let engine = Engine::start_full(&bus, &pool, 2).await;
    let request = submit(&pool, 0..100);
    let id = send(&bus, &request).await;
    assert_eq!(engine.took().await.prompt, request.prompt);
    let offers = eventually("it was taken", SOON, async || {
        let decisions = decisions(id).await;
        let outcomes = decisions.as_array().unwrap().iter().map(|decision| decision["outcome"].clone());
        let outcomes: Vec<_> = outcomes.collect();
        (outcomes.last()? == "accepted").then_some(outcomes)
    })
    .await;
    assert_eq!(offers, ["not-taken", "not-taken", "accepted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_overloaded_is_asked_once() {
    let (bus, pool) = stage("overload").await;
    let full = [Engine::start_full(&bus, &pool, 1).await, Engine::start_full(&bus, &pool, 1).await];
    let names: Vec<InstanceId> = full.iter().map(|engine| engine.instance().clone()).collect();
    let (suspects, envelope) = (Suspects::default(), Envelope::new(RequestId::mint()));
    let body = codec::encode(&submit(&pool, 0..10));
    let mut offers = Vec::new();
    let outcome = hand_over(
        &bus,
        &suspects,
        &envelope,
        Instant::now() + SOON,
        |tried| prefer(&names, tried, &suspects),
        |to| {
            offers.push(to.clone());
            (subject::instance_requests(bus.namespace(), Role::Decode, &pool, to), body.clone())
        },
        |_| true,
    )
    .await;
    assert_eq!(outcome.unwrap_err().code, FaultCode::Overloaded);
    assert_eq!(offers, names);
}

/// What the router says to ingress of one request, up to its last word.
async fn said_of(bus: &Bus, request: Submit) -> Vec<Body<TextDelta>> {
    let mut frames = bus.listen(subject::frames(bus.namespace(), &request.ingress)).await.unwrap();
    let id = send(bus, &request).await;
    let mut said = Vec::new();
    while !matches!(said.last(), Some(Body::Failed(_) | Body::Accepted { role: Role::Decode, .. })) {
        let message = tokio::time::timeout(SOON, frames.next()).await.unwrap().unwrap();
        let batch: TextBatch = codec::decode(&message.payload).unwrap();
        said.extend(batch.frames.into_iter().filter(|frame| frame.request == id).map(|frame| frame.body));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn ingress_hears_who_did_not_answer_and_gets_the_request_back_before_many_can_die_of_it() {
    let (bus, pool) = stage("silence").await;
    let mut engines = Vec::new();
    for _ in 0..4 {
        engines.push(Engine::start_mute(&bus, &pool).await);
    }
    for (deaths, at_most) in [(0, 2), (Submit::POISON_AFTER, 1)] {
        let ingress = format!("ingress-{at_most}").parse().unwrap();
        let said = said_of(&bus, Submit { ingress, deaths, ..submit(&pool, 0..100) }).await;
        let silent = said.iter().filter_map(|body| match body {
            Body::Unanswered { engine, .. } => Some(engine),
            _ => None,
        });
        let silent: HashSet<_> = silent.collect();
        assert_eq!(silent.len(), at_most, "{said:?}");
        let Some(Body::Failed(fault)) = said.last() else { panic!("{said:?}") };
        assert_eq!(fault.code, FaultCode::Unanswered);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ingress_hears_from_the_router_too_which_engine_took_the_request() {
    let (bus, pool) = stage("custody").await;
    let engine = Engine::start(&bus, &pool, []).await;
    let ingress = "ingress-custody".parse().unwrap();
    let said = said_of(&bus, Submit { ingress, ..submit(&pool, 0..100) }).await;
    let (instance, role) = (engine.instance().clone(), Role::Decode);
    assert_eq!(said.last(), Some(&Body::Accepted { instance, role, prefill: None }));
}

/// Reports of an engine that would take a second to compute a thousand tokens.
fn slow(load: &mut Load) {
    (load.prefill_token_ns, load.max_running, load.max_queued) = (1_000_000, 1000, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn ingress_hears_who_may_compute_the_prompt_and_nobody_may_of_a_request_that_engines_died_with() {
    let (bus, pool) = stage("named").await;
    // One is named for the first request, and the other could be for the second.
    let _prefills = [Engine::start_prefill(&bus, &pool).await, Engine::start_prefill(&bus, &pool).await];
    let engine = Engine::start(&bus, &pool, []).await;
    let long = Submit { ingress: "ingress-named".parse().unwrap(), ..submit(&pool, 0..2000) };
    let named = async |submit: Submit| match said_of(&bus, submit).await.pop() {
        Some(Body::Accepted { prefill, .. }) => prefill,
        other => panic!("{other:?}"),
    };
    eventually("a prefill instance is named", SOON, async || {
        engine.report(slow);
        named(long.clone()).await
    })
    .await;
    assert_eq!(named(Submit { deaths: 1, ..long }).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_instance_that_holds_less_than_the_index_says_is_asked_for_its_cache_anew() {
    let (bus, pool) = stage("prefill-drift").await;
    let (engine, prefill) = (Engine::start(&bus, &pool, []).await, Engine::start_prefill(&bus, &pool).await);
    let request = submit(&pool, 0..2000);
    prefill.store(&chain(&prefill, &request), true);
    // Tokens of the prompt that the router takes to be missing at the prefill instance, of which it finds all missing.
    let missing = async || {
        let id = send(&bus, &request).await;
        let dispatch = engine.took().await.dispatch.unwrap();
        let (router, number) = dispatch.clone();
        engine.report(|load| {
            slow(load);
            load.seen = vec![dispatch.clone()];
        });
        prefill.report(|load| {
            load.seen = vec![dispatch.clone()];
            load.started = vec![Started { router, number, cached_tokens: 0 }];
        });
        decisions(id).await[0]["remote_prefill"]["there"]["missing_tokens"].as_u64()
    };
    eventually("the prompt is found to be cached", SOON, async || {
        missing().await.filter(|tokens| *tokens == 16)
    })
    .await;
    prefill.forget();
    eventually("the index knows better", SOON, async || missing().await.filter(|tokens| *tokens == 2000))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_named_to_compute_the_prompt_after_an_engine_that_did_not_answer() {
    let (bus, pool) = stage("silent").await;
    let _prefills = [Engine::start_prefill(&bus, &pool).await, Engine::start_prefill(&bus, &pool).await];
    let mutes = [Engine::start_mute(&bus, &pool).await, Engine::start_mute(&bus, &pool).await];
    let long = Submit { ingress: "ingress-silent".parse().unwrap(), ..submit(&pool, 0..2000) };
    eventually("the first engine may have it computed, the second may not", SOON, async || {
        mutes.iter().for_each(|mute| mute.report(slow));
        let said = said_of(&bus, long.clone()).await;
        let named = said.iter().filter_map(|body| match body {
            Body::Unanswered { prefill, .. } => Some(prefill.is_some()),
            _ => None,
        });
        named.eq([true, false]).then_some(())
    })
    .await;
}

const PRETENDED: u64 = 100;
const BLOCKS_EACH: u64 = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_starts_late_learns_every_cache_from_snapshots() {
    let (bus, pool) = stage("many").await;
    let mut engines = Vec::new();
    for n in 0..PRETENDED {
        let blocks =
            (0..BLOCKS_EACH).map(|at| (n * BLOCKS_EACH + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        engines.push(Engine::start(&bus, &pool, blocks).await);
    }
    // Where tests have a process each, this is the start of the router.
    let began = Instant::now();
    router();
    eventually("every snapshot is taken", SOON, async || {
        let blocks = router_figure("stator_router_index_blocks").await;
        (blocks >= (PRETENDED * BLOCKS_EACH) as f64).then_some(())
    })
    .await;
    println!("{PRETENDED} caches of {BLOCKS_EACH} blocks known after {:?}", began.elapsed());
}
