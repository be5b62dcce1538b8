//! Prefill instances that are named, and those that are passed over.

use super::*;

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

#[test]
fn an_engine_that_computes_all_prompts_itself_is_offered_no_help_and_makes_nobody_a_stranger() {
    let here = beside_prefills(&["p"]);
    assert!(choose(&here, &submit(Routing::default()), 1).unwrap().prefill.is_some());
    let alone = Lease {
        computes_all: true,
        kv_layout: Some("f16".to_owned()),
        ..Lease::clone(&lease(Role::Decode, "b"))
    };
    here.lock().fleet_mut(Role::Decode).sync(&[Arc::new(alone)]);
    let stays = choose(&here, &submit(Routing::default()), 2).unwrap();
    assert_eq!((stays.prefill, stays.weighed), (None, None));
    assert_eq!(here.lock().strangers(), None);
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
    assert_eq!((none.prefill, none.weighed.unwrap().offer.passed_over.shunned), (None, 2));
    assert!(shuns(5, &[]).prefill.is_some());
}

#[test]
fn a_prefill_instance_whose_pool_does_not_hold_the_prompt_is_passed_over() {
    let here = beside_prefills(&[]);
    let of = |name: &str, tokens| {
        Arc::new(Lease { kv_tokens: Some(tokens), ..Lease::clone(&lease(Role::Prefill, name)) })
    };
    // Of 70 tokens the engine asks for the four whole blocks.
    for (tokens, named, verdict) in [(63, None, Verdict::TooSmall), (64, Some(id("fits")), Verdict::Named)] {
        here.lock().prefill.sync(&[]);
        here.lock().prefill.sync(&[of("fits", tokens), of("small", 48)]);
        let choice = choose(&here, &submit(Routing::default()), 1).unwrap();
        let weighed = choice.weighed.unwrap();
        assert_eq!((choice.prefill, weighed.verdict), (named, verdict));
    }
}

#[test]
fn a_request_that_engines_may_have_died_of_puts_no_prefill_instance_at_risk() {
    let here = beside_prefills(&["p"]);
    let (submit, suspects) = (submit(Routing::default()), Suspects::default());
    for (alone, named) in [(false, Some(id("p"))), (true, None)] {
        let wish = Wish { alone, ..wish(&submit, &[], &suspects) };
        assert_eq!(here.lock().choose(&wish, 1, Instant::now()).unwrap().prefill, named);
    }
}

#[test]
fn a_prefill_instance_that_is_doubted_or_avoided_is_passed_over() {
    let here = beside_prefills(&["p"]);
    let plain = submit(Routing::default());
    let avoiding = Submit { avoid: vec![id("p")], ..plain.clone() };
    let choice = choose(&here, &avoiding, 1).unwrap();
    assert_eq!((choice.prefill, verdict(choice.weighed)), (None, Some(Verdict::Doubted)));
    let suspects = Suspects::default();
    suspects.mark(&id("p"));
    let choice = here.lock().choose(&wish(&plain, &[], &suspects), 2, Instant::now()).unwrap();
    assert_eq!((choice.prefill, verdict(choice.weighed)), (None, Some(Verdict::Doubted)));
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
