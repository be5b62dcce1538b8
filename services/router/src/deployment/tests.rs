mod poison;
mod prefill;
mod turn;

use std::{sync::LazyLock, time::Instant};

use actors::suspects::Suspects;
use messages::{
    InstanceId,
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
    Wish { submit, chains: &*CHAINS, tried, suspects, alone: false, show_all: false }
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
fn an_engine_whose_pool_is_too_small_is_chosen_only_where_all_are() {
    let here = deployment(&settings(), &[], &[]);
    let of = |name: &str, tokens| {
        Arc::new(Lease { kv_tokens: Some(tokens), ..Lease::clone(&lease(Role::Decode, name)) })
    };
    // 70 tokens of prompt and 16 of output, of which the last is never computed.
    here.lock().decode.sync(&[of("small", 84), of("large", 85)]);
    for number in 1..=20 {
        assert_eq!(choose(&here, &submit(Routing::default()), number).unwrap().engine, id("large"));
    }
    let (suspects, plain) = (Suspects::default(), submit(Routing::default()));
    let tried = [id("large")];
    assert!(
        here.lock().choose(&wish(&plain, &tried, &suspects), 21, Instant::now()).is_none(),
        "one that is full now is waited for"
    );
    here.lock().decode.sync(&[of("small", 84)]);
    assert_eq!(choose(&here, &plain, 22).unwrap().engine, id("small"), "it says that nothing fits");
    let pinned = submit(Routing { pin: Some(id("small")), ..Routing::default() });
    here.lock().decode.sync(&[of("small", 84), of("large", 85)]);
    assert_eq!(choose(&here, &pinned, 23).unwrap().engine, id("small"));
}

#[test]
fn what_has_no_limit_goes_to_any_engine_that_has_room_for_an_answer_and_else_to_the_largest() {
    let of = |name: &str, tokens| {
        Arc::new(Lease { kv_tokens: Some(tokens), ..Lease::clone(&lease(Role::Decode, name)) })
    };
    // 70 tokens of prompt and 512 of output, of which the last is never computed.
    let open = Submit { max_tokens: 4000, open_ended: true, ..submit(Routing::default()) };
    let chosen = |submit: &Submit, tokens: [u64; 2]| {
        let here = deployment(&settings(), &[], &[]);
        here.lock().decode.sync(&[of("small", tokens[0]), of("large", tokens[1])]);
        let engines = (1..=20).map(|number| choose(&here, submit, number).unwrap().engine);
        engines.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(chosen(&open, [581, 9000]).len(), 2);
    for tokens in [[580, 9000], [500, 501]] {
        assert_eq!(chosen(&open, tokens), [id("large")].into(), "{tokens:?}");
    }
    let begun = ChoiceStart { index: 0, output: (0..100).collect() };
    let begun = Submit { choices: vec![begun], ..open };
    assert_eq!(chosen(&begun, [681, 9000]).len(), 2);
    assert_eq!(chosen(&begun, [680, 9000]), [id("large")].into());
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
