use std::{sync::LazyLock, time::Instant};

use actors::suspects::Suspects;
use messages::{
    InstanceId, RequestId,
    kv::KvSnapshot,
    lease::Lease,
    load::Load,
    submit::{ChoiceStart, Routing, Submit},
};

use super::*;
use crate::{
    chain::Chain,
    decisions::Considered,
    fixtures::{id, lease, load},
    policy::Policy,
    queue::Claim,
    remote::{Bid, Verdict, Weighed},
};

const CHAIN: [u64; 4] = [1, 2, 3, 4];
/// The same prompt for engines of 16 and of 32 tokens a block.
static CHAINS: LazyLock<[Chain; 2]> = LazyLock::new(|| {
    [Chain { page_size: 16, blocks: CHAIN.to_vec() }, Chain { page_size: 32, blocks: vec![71, 72] }]
});

fn settings() -> RouterSettings {
    RouterSettings::default()
}

/// A deployment with these engines, none of which carries anything.
fn deployment(settings: &RouterSettings, engines: &[&str], prefills: &[&str]) -> Arc<Deployment> {
    let deployment = Deployment::new(Pool::of_model("m", "00"), settings);
    let mut state = deployment.lock();
    for (role, names) in [(Role::Decode, engines), (Role::Prefill, prefills)] {
        let live: Vec<_> = names.iter().map(|name| lease(role, name)).collect();
        state.fleet_mut(role).sync(&live);
    }
    for name in engines {
        state.decode.heard_load(load(name, 1, 0), &id("router-1"), Instant::now());
    }
    drop(state);
    deployment
}

fn submit(routing: Routing) -> Submit {
    let (pool, prompt) = (Pool::of_model("m", "00"), (0..70).collect());
    Submit { max_tokens: 16, routing, ..Submit::new(pool, prompt, id("tokenizer-1"), id("ingress-1")) }
}

fn wish<'a>(submit: &'a Submit, tried: &'a [InstanceId], suspects: &'a Suspects) -> Wish<'a> {
    Wish { submit, chains: &*CHAINS, tried, suspects, show_all: false }
}

fn choose(deployment: &Deployment, submit: &Submit, number: u64) -> Option<Choice> {
    let suspects = Suspects::default();
    deployment.lock().choose(&wish(submit, &[], &suspects), number, Instant::now())
}

fn cache(deployment: &Deployment, role: Role, instance: &str, blocks: &[u64]) {
    let blocks = blocks.iter().copied().collect();
    let snapshot = KvSnapshot { instance: id(instance), epoch: 1, next: 0, blocks };
    deployment.lock().fleet_mut(role).take_snapshot(&snapshot);
}

#[test]
fn the_engine_that_holds_the_prompt_is_chosen_and_the_choice_explained() {
    let here = deployment(&settings(), &["a", "b", "c"], &[]);
    cache(&here, Role::Decode, "b", &CHAIN[..3]);
    let choice = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert_eq!(choice.engine, id("b"));
    assert_eq!(choice.predicted_cached_tokens, 48);
    let considered = choice.considered();
    assert_eq!((considered.len(), choice.shortlist.left_out), (3, 0));
    let (best, next) = (&considered[0], &considered[1]);
    assert_eq!((best.instance.as_str(), best.seen.overlap_blocks), ("b", 3));
    let terms = |considered: &Considered| considered.terms.unwrap().total();
    assert!(terms(best) < terms(next) && (terms(best) - best.cost.unwrap()).abs() < 1e-9);
}

#[test]
fn a_burst_spreads_before_any_report_comes() {
    let here = deployment(&settings(), &["a", "b", "c", "d"], &[]);
    cache(&here, Role::Decode, "a", &CHAIN[..1]);
    let chosen: Vec<InstanceId> =
        (1..=12).map(|number| choose(&here, &submit(Routing::default()), number).unwrap().engine).collect();
    for engine in ["a", "b", "c", "d"] {
        let taken = chosen.iter().filter(|chosen| **chosen == id(engine)).count();
        assert!((2..=4).contains(&taken), "{engine} took {taken} of {chosen:?}");
    }
}

#[test]
fn doubts_are_preferences_and_tried_ones_are_left_out() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let suspects = Suspects::default();
    suspects.mark(&id("a"));
    let pick = |submit: &Submit, tried: &[InstanceId]| {
        let mut state = here.lock();
        state.choose(&wish(submit, tried, &suspects), 1, Instant::now()).map(|choice| choice.engine)
    };
    let plain = submit(Routing::default());
    assert_eq!(pick(&plain, &[]), Some(id("b")));
    assert_eq!(pick(&plain, &[id("b")]), Some(id("a")), "a suspect serves when nobody else can");
    assert!(pick(&Submit { avoid: vec![id("b")], ..plain.clone() }, &[]).is_some());
    assert_eq!(pick(&plain, &[id("a"), id("b")]), None);
}

#[test]
fn a_pinned_request_goes_there_whatever_is_cached_elsewhere() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    cache(&here, Role::Decode, "b", &CHAIN);
    let pinned = submit(Routing { pin: Some(id("a")), ..Routing::default() });
    assert_eq!(choose(&here, &pinned, 1).unwrap().engine, id("a"));
    let gone = submit(Routing { pin: Some(id("z")), ..Routing::default() });
    assert!(choose(&here, &gone, 2).is_none());
}

#[test]
fn two_routers_send_a_session_to_the_same_engine() {
    let engines = ["a", "b", "c", "d", "e"];
    let (one, other) = (deployment(&settings(), &engines, &[]), deployment(&settings(), &engines, &[]));
    let mut homes = std::collections::HashSet::new();
    for session in 0..40 {
        let request = submit(Routing { session: Some(format!("user-{session}")), ..Routing::default() });
        let home = choose(&one, &request, session).unwrap();
        one.lock().refused(&home.engine, None, session);
        let there = choose(&other, &request, session).unwrap().engine;
        other.lock().refused(&there, None, session);
        assert_eq!(home.engine, there);
        homes.insert(there);
    }
    assert_eq!(homes.len(), 5, "sessions spread over all engines");
}

#[test]
fn without_events_what_was_sent_somewhere_is_taken_to_be_there() {
    let guessing = RouterSettings { kv_events: KvEventsMode::Off, ..settings() };
    let here = deployment(&guessing, &["a", "b", "c"], &[]);
    let first = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert_eq!(first.predicted_cached_tokens, 0);
    here.lock().decode.heard_load(
        Load { seen: vec![(id("router-1"), 1)], ..load(first.engine.as_str(), 2, 0) },
        &id("router-1"),
        Instant::now(),
    );
    let second = choose(&here, &submit(Routing::default()), 2).unwrap();
    assert_eq!((second.engine, second.predicted_cached_tokens), (first.engine, 64));
}

#[test]
fn a_prefill_instance_is_named_where_it_pays_and_its_own_prefix_counts() {
    let eager = RouterSettings { remote_prefill_tokens: 16, remote_prefill_overhead_ms: 0.0, ..settings() };
    let here = deployment(&eager, &["a"], &["p", "q"]);
    cache(&here, Role::Prefill, "q", &CHAIN[..2]);
    let slow = |name: &str, number| Load { prefill_token_ns: 1_000_000, ..load(name, number, 0) };
    for (role, name) in [(Role::Decode, "a"), (Role::Prefill, "p"), (Role::Prefill, "q")] {
        here.lock().fleet_mut(role).heard_load(slow(name, 2), &id("router-1"), Instant::now());
    }
    let first = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert_eq!(first.prefill, Some(id("q")));
    cache(&here, Role::Decode, "a", &CHAIN);
    assert_eq!(choose(&here, &submit(Routing::default()), 2).unwrap().prefill, None, "all of it is cached");
}

#[test]
fn new_requests_wait_for_a_prefill_instance_to_spare_others_and_streams_that_go_on_do_not() {
    let eager = RouterSettings { remote_prefill_tokens: 16, ..settings() };
    let here = deployment(&eager, &["a"], &["p"]);
    let busy = Load { prefill_token_ns: 1_000_000, ..load("a", 2, 3) };
    let queue = Load { prefill_token_ns: 1_000_000, pending_prefill_tokens: 300, ..load("p", 2, 1) };
    here.lock().decode.heard_load(busy, &id("router-1"), Instant::now());
    here.lock().prefill.heard_load(queue, &id("router-1"), Instant::now());
    let first = submit(Routing::default());
    assert_eq!(choose(&here, &first, 1).unwrap().prefill, Some(id("p")));
    let choices = vec![ChoiceStart { index: 0, output: [7].into_iter().collect() }];
    assert_eq!(choose(&here, &Submit { choices, ..first }, 2).unwrap().prefill, None);
}

fn claim(tenant: &str) -> Claim {
    Claim { priority: 0, tenant: tenant.to_owned(), tokens: 10 }
}

/// An engine of eight places with room for so many more.
fn nearly_full(settings: &RouterSettings, room: u32) -> Arc<Deployment> {
    let here = deployment(settings, &["a"], &[]);
    let report = Load { queued: 2 - room, ..load("a", 2, 8) };
    here.lock().decode.heard_load(report, &id("router-1"), Instant::now());
    here
}

#[tokio::test]
async fn a_request_waits_for_room_and_goes_when_an_engine_reports_it() {
    let here = nearly_full(&settings(), 1);
    let Ok(Turn::Now(first)) = here.enter(claim("t")) else { panic!("there is room for one") };
    let Ok(Turn::Later(waiting)) = here.enter(claim("t")) else { panic!("there was room for one only") };
    let turn = tokio::spawn(waiting.turn());
    here.lock().decode.heard_load(load("a", 3, 8), &id("router-1"), Instant::now());
    here.stir();
    assert!(turn.await.unwrap().is_ok(), "two places are free, one is taken by the first");
    drop(first);
}

#[tokio::test]
async fn while_no_engine_lives_requests_queue_and_a_new_engine_gets_no_more_than_it_has_room_for() {
    let here = deployment(&RouterSettings { max_queued_requests: 4, ..settings() }, &[], &[]);
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let Ok(Turn::Later(place)) = here.enter(claim("t")) else { panic!("nobody could take it") };
        waiting.push(place);
    }
    assert!(here.enter(claim("t")).is_err(), "the queue is full");
    let told = Lease { max_running: Some(1), max_queued: Some(1), ..Lease::clone(&lease(Role::Decode, "a")) };
    here.lock().decode.sync(&[Arc::new(told)]);
    here.stir();
    assert_eq!(here.lock().queued(), 2);
}

#[tokio::test]
async fn what_no_engine_took_goes_before_all_that_have_had_no_turn() {
    let here = nearly_full(&RouterSettings { max_queued_requests: 1, ..settings() }, 0);
    let Ok(Turn::Later(first)) = here.enter(claim("t")) else { panic!("full") };
    let Turn::Later(again) = here.enter_again() else { panic!("full") };
    let room = Load { queued: 1, ..load("a", 3, 8) };
    here.lock().decode.heard_load(room, &id("router-1"), Instant::now());
    here.stir();
    let granted = again.turn().await;
    assert!(granted.is_ok() && here.lock().queued() == 1);
    drop((granted, first));
}

#[tokio::test]
async fn who_waits_is_forsaken_only_while_no_engine_lives() {
    let here = deployment(&settings(), &[], &[]);
    let began = Instant::now();
    here.forsaken(began, Duration::ZERO).await;
    here.lock().decode.sync(&[lease(Role::Decode, "a")]);
    here.stir();
    let waits = tokio::spawn({
        let here = here.clone();
        async move { here.forsaken(began, Duration::ZERO).await }
    });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    here.lock().decode.sync(&[]);
    here.stir();
    waits.await.unwrap();
}

#[tokio::test]
async fn a_turn_that_nobody_takes_goes_to_the_next() {
    let here = nearly_full(&settings(), 1);
    let Ok(Turn::Now(first)) = here.enter(claim("t")) else { panic!("there is room for one") };
    let Ok(Turn::Later(leaves)) = here.enter(claim("t")) else { panic!("full") };
    let Ok(Turn::Later(stays)) = here.enter(claim("t")) else { panic!("full") };
    drop(first);
    drop(leaves);
    assert!(stays.turn().await.is_ok());
}

#[tokio::test]
async fn beyond_the_queue_requests_are_refused_with_a_time_to_come_back() {
    let here = nearly_full(&RouterSettings { max_queued_requests: 2, ..settings() }, 0);
    let Ok(Turn::Later(_first)) = here.enter(claim("loud")) else { panic!("it waits") };
    let Ok(Turn::Later(evicted)) = here.enter(claim("loud")) else { panic!("it waits") };
    let fault = here.enter(claim("loud")).err().unwrap();
    assert!(fault.code == messages::FaultCode::Overloaded && fault.retry_after_ms.is_some());
    assert!(matches!(here.enter(claim("calm")), Ok(Turn::Later(_))));
    assert!(evicted.turn().await.is_err(), "it had to leave for a tenant with fewer");
}

#[test]
fn one_suspect_runs_in_a_pool_until_its_engine_reports_that_it_is_over() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let (first, second, now) = (RequestId::mint(), RequestId::mint(), Instant::now());
    let me = id("router-1");
    let mut state = here.lock();
    assert!(state.take_suspect(first, now));
    assert!(!state.take_suspect(second, now));
    state.suspect_sent(first, &id("a"), 7, now);
    let seen = |number, alone| Load { seen: vec![(me.clone(), number)], alone, ..load("a", 9, 1) };
    for (report, over) in [(seen(6, false), false), (seen(7, true), false), (seen(7, false), true)] {
        state.suspect_heard(&report, &me, now);
        assert_eq!(state.take_suspect(second, now), over);
    }
}

#[test]
fn a_suspect_holds_the_place_no_longer_than_its_engine_or_a_report_that_names_no_dispatch() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let (first, second, now) = (RequestId::mint(), RequestId::mint(), Instant::now());
    let mut state = here.lock();
    assert!(state.take_suspect(first, now));
    state.suspect_sent(first, &id("a"), 7, now);
    state.suspect_heard(&load("a", 1, 0), &id("router-1"), now);
    assert!(!state.take_suspect(second, now), "the report may be older than the dispatch");
    let later = now + std::time::Duration::from_secs(1);
    state.suspect_heard(&load("a", 2, 0), &id("router-1"), later);
    assert!(state.take_suspect(second, later));

    assert!(state.take_suspect(second, later), "it comes again: its engine is gone");
    state.suspect_sent(second, &id("dead"), 8, later);
    assert!(state.take_suspect(first, later), "the engine had gone before it was noted");
}

#[test]
fn others_go_where_no_suspect_is_aboard_while_they_can() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let (request, now) = (RequestId::mint(), Instant::now());
    let goes = |number| choose(&here, &submit(Routing::default()), number).map(|choice| choice.engine);
    here.lock().take_suspect(request, now);
    here.lock().suspect_sent(request, &id("a"), 1, now);
    assert!((2..6).all(|number| goes(number) == Some(id("b"))));
    here.lock().decode.heard_load(Load { alone: true, ..load("b", 1, 1) }, &id("router-1"), now);
    assert!(goes(6).is_some(), "with suspects everywhere, one engine must do");
}

#[test]
fn a_suspect_of_another_router_keeps_the_place_too() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let mut state = here.lock();
    let now = Instant::now();
    state.decode.heard_load(Load { alone: true, ..load("b", 2, 1) }, &id("router-1"), now);
    assert!(!state.take_suspect(RequestId::mint(), now));
    state.decode.heard_load(load("b", 3, 0), &id("router-1"), now);
    assert!(state.take_suspect(RequestId::mint(), now));
}

#[test]
fn policies_other_than_kv_explain_without_terms() {
    let turns = RouterSettings { policy: Policy::RoundRobin, ..settings() };
    let here = deployment(&turns, &["a", "b"], &[]);
    let choice = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert!(choice.considered().iter().all(|considered| considered.terms.is_none()));
}

#[test]
fn candidates_that_were_not_drawn_show_no_cost() {
    let here =
        deployment(&RouterSettings { policy: Policy::PowerOfTwo, ..settings() }, &["a", "b", "c"], &[]);
    let choice = choose(&here, &submit(Routing::default()), 1).unwrap();
    let considered = choice.considered();
    let drawn = considered.iter().filter(|considered| considered.cost.is_some()).count();
    assert_eq!((drawn, considered.len()), (2, 3));
}

#[test]
fn a_prefill_instance_whose_pages_the_engine_cannot_take_is_not_named() {
    let eager = RouterSettings { remote_prefill_tokens: 16, remote_prefill_overhead_ms: 0.0, ..settings() };
    let here = deployment(&eager, &[], &[]);
    let join = |role, instances: &[(&str, &str)]| {
        let lease = |(name, layout): &(&str, &str)| {
            Arc::new(Lease { kv_layout: Some((*layout).to_owned()), ..Lease::clone(&lease(role, name)) })
        };
        let live: Vec<_> = instances.iter().map(lease).collect();
        let mut state = here.lock();
        state.fleet_mut(role).sync(&live);
        for (name, _) in instances {
            let slow = Load { prefill_token_ns: 1_000_000, ..load(name, 1, 0) };
            state.fleet_mut(role).heard_load(slow, &id("router-1"), Instant::now());
        }
    };
    join(Role::Decode, &[("a", "f16")]);
    join(Role::Prefill, &[("p", "f32")]);
    assert_eq!(here.lock().strangers(), Some(("f32".to_owned(), "f16".to_owned())));
    let stays = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert_eq!((stays.prefill, verdict(stays.weighed)), (None, Some(Verdict::OtherLayout)));
    join(Role::Prefill, &[("p", "f32"), ("q", "f16")]);
    assert_eq!(choose(&here, &submit(Routing::default()), 2).unwrap().prefill, Some(id("q")));
    // An engine that makes pages of its own of them takes them; those of others are not meant by that.
    join(Role::Prefill, &[("p", "f32")]);
    let accepts = |name: &str, layout: &str| {
        let kv_accepts = vec![layout.to_owned()];
        Arc::new(Lease {
            kv_layout: Some("f16".to_owned()),
            kv_accepts,
            ..Lease::clone(&lease(Role::Decode, name))
        })
    };
    for (name, layout, named) in [("b", "bf16", None), ("c", "f32", Some(id("p")))] {
        here.lock().fleet_mut(Role::Decode).sync(&[accepts(name, layout)]);
        assert_eq!(choose(&here, &submit(Routing::default()), 3).unwrap().prefill, named, "{layout}");
        assert_eq!(here.lock().strangers().is_some(), named.is_none());
    }
}

fn verdict(weighed: Option<Weighed>) -> Option<Verdict> {
    weighed.map(|weighed| weighed.verdict)
}

/// An engine and prefill instances that pay for any prompt.
fn beside_prefills(prefills: &[&str]) -> Arc<Deployment> {
    let eager = RouterSettings {
        remote_prefill_tokens: 16,
        remote_prefill_overhead_ms: 0.0,
        remote_prefill_slack: 100.0,
        ..settings()
    };
    let here = deployment(&eager, &["a"], prefills);
    let slow = Load { prefill_token_ns: 1_000_000, ..load("a", 2, 0) };
    here.lock().decode.heard_load(slow, &id("router-1"), Instant::now());
    here
}

#[test]
fn a_prefill_instance_that_the_engine_shuns_is_passed_over_for_another_and_then_for_none() {
    let here = beside_prefills(&["p", "q"]);
    let shuns = |number, names: &[&str]| {
        let shunned = names.iter().map(|name| id(name)).collect();
        let report = Load { shunned, prefill_token_ns: 1_000_000, ..load("a", number, 0) };
        here.lock().decode.heard_load(report, &id("router-1"), Instant::now());
        choose(&here, &submit(Routing::default()), number).unwrap()
    };
    assert_eq!(shuns(3, &["p"]).prefill, Some(id("q")));
    let none = shuns(4, &["p", "q"]);
    assert_eq!((none.prefill, none.weighed.unwrap().offer.shunned), (None, 2));
    assert!(shuns(5, &[]).prefill.is_some());
}

#[test]
fn a_prefill_instance_that_is_doubted_or_avoided_is_passed_over() {
    let here = beside_prefills(&["p"]);
    let plain = submit(Routing::default());
    let avoiding = Submit { avoid: vec![id("p")], ..plain.clone() };
    let choice = choose(&here, &avoiding, 1).unwrap();
    assert_eq!((choice.prefill, verdict(choice.weighed)), (None, Some(Verdict::Shunned)));
    let suspects = Suspects::default();
    suspects.mark(&id("p"));
    let choice = here.lock().choose(&wish(&plain, &[], &suspects), 2, Instant::now()).unwrap();
    assert_eq!((choice.prefill, verdict(choice.weighed)), (None, Some(Verdict::Shunned)));
    assert_eq!(choose(&here, &plain, 3).unwrap().prefill, Some(id("p")));
}

#[test]
fn a_decision_tells_what_was_weighed_whether_or_not_a_prefill_instance_is_named() {
    let here = beside_prefills(&["p"]);
    let named = choose(&here, &submit(Routing::default()), 1).unwrap().weighed.unwrap();
    let lacks = Bid { missing_tokens: 70, queued_tokens: 0, token_ns: 1_000_000 };
    assert_eq!((named.verdict, named.offer.here, named.times.here_ms), (Verdict::Named, lacks, 70.0));
    assert_eq!(named.named(), Some(&id("p")));
    cache(&here, Role::Decode, "a", &CHAIN);
    let cached = choose(&here, &submit(Routing::default()), 2).unwrap().weighed.unwrap();
    assert_eq!((cached.verdict, cached.offer.here.missing_tokens), (Verdict::TooFewTokens, 6));
    assert_eq!(cached.offer.there.unwrap().bid.queued_tokens, 70, "the first one waits there");

    let scored = Submit { score_prompt_from: Some(0), ..submit(Routing::default()) };
    let choice = choose(&here, &scored, 3).unwrap();
    assert!(choice.prefill.is_none() && choice.weighed.is_none(), "only the engine can score a prompt");
}

#[test]
fn an_engine_of_another_page_size_is_chosen_for_what_its_own_blocks_say() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let large = Arc::new(Lease { page_size: Some(32), ..Lease::clone(&lease(Role::Decode, "large")) });
    // The first engine known decides nothing for the others.
    let live = [large.clone(), lease(Role::Decode, "a"), lease(Role::Decode, "b")];
    here.lock().decode.sync(&[]);
    here.lock().decode.sync(&live);
    cache(&here, Role::Decode, "b", &CHAIN[..2]);
    let choice = choose(&here, &submit(Routing::default()), 1).unwrap();
    assert_eq!((choice.engine.as_str(), choice.predicted_cached_tokens), ("b", 32));
    here.lock().refused(&choice.engine, None, 1);
    cache(&here, Role::Decode, "large", &[71, 72]);
    let choice = choose(&here, &submit(Routing::default()), 2).unwrap();
    assert_eq!((choice.engine.as_str(), choice.predicted_cached_tokens), ("large", 64));
    let shown = choice.considered();
    assert_eq!((choice.demand.page_size, shown[0].seen.overlap_blocks), (16, 4));
    let carries = here.lock().decode.member(&id("large")).unwrap().load().burden();
    assert_eq!((carries.blocks, carries.prefill_tokens), (1, 6), "in its own blocks");
}
