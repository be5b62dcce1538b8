//! Requests that engines have died under.

use super::*;

fn goes(here: &Deployment, maybe_poison: bool, number: u64) -> Option<InstanceId> {
    let deaths = if maybe_poison { Submit::POISON_AFTER } else { 0 };
    let submit = Submit { deaths, ..submit(Routing::default()) };
    choose(here, &submit, number).map(|choice| choice.engine)
}

#[test]
fn an_engine_has_one_aboard_until_it_reports_that_it_got_further() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let (me, now) = (id("router-1"), Instant::now());
    let engines = [goes(&here, true, 7), goes(&here, true, 8)].map(Option::unwrap);
    assert_ne!(engines[0], engines[1]);
    assert!(here.lock().poison_waits(None) && here.lock().poison_waits(Some(&id("a"))));
    assert_eq!(goes(&here, true, 9), None);

    let seen = |number, maybe_poison| Load {
        seen: vec![(me.clone(), number)],
        maybe_poison,
        ..load(engines[0].as_str(), 9, 1)
    };
    for (report, over) in [(seen(6, false), false), (seen(7, true), false), (seen(7, false), true)] {
        here.lock().poison_heard(&report, &me, now);
        assert_eq!(here.lock().poison_waits(None), !over);
    }
    assert_eq!(goes(&here, true, 10).as_ref(), Some(&engines[0]));
}

#[test]
fn a_place_is_free_again_without_its_engine_or_after_a_report_that_names_no_dispatch() {
    let here = deployment(&settings(), &["a"], &[]);
    let (me, now) = (id("router-1"), Instant::now());
    goes(&here, true, 7).unwrap();
    let mut state = here.lock();
    state.poison_heard(&load("a", 1, 0), &me, now);
    assert!(state.poison_waits(None), "the report may be older than the dispatch");
    state.poison_heard(&load("a", 2, 0), &me, now + std::time::Duration::from_secs(2));
    assert!(!state.poison_waits(None));
    drop(state);

    goes(&here, true, 8).unwrap();
    here.lock().refused(&id("a"), None, 8);
    assert!(!here.lock().poison_waits(None), "it was not taken");

    goes(&here, true, 9).unwrap();
    let mut state = here.lock();
    state.decode.sync(&[lease(Role::Decode, "b")]);
    state.poison_gone();
    assert!(!state.poison_waits(None), "the engine is gone");
    state.decode.sync(&[]);
    assert!(!state.poison_waits(None), "nobody to wait for");
}

#[test]
fn others_go_where_none_is_aboard_while_they_can() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let engine = goes(&here, true, 1).unwrap();
    assert!((2..6).all(|number| goes(&here, false, number).unwrap() != engine));
    goes(&here, true, 6).unwrap();
    assert!(goes(&here, false, 7).is_some(), "with one on every engine, any must do");
}

#[test]
fn one_that_another_router_sent_counts_too() {
    let here = deployment(&settings(), &["a", "b"], &[]);
    let now = Instant::now();
    let report = |number, maybe_poison| Load { maybe_poison, ..load("b", number, 1) };
    here.lock().decode.heard_load(report(2, true), &id("router-1"), now);
    assert_eq!([goes(&here, true, 1), goes(&here, true, 2)], [Some(id("a")), None]);
    here.lock().decode.heard_load(report(3, false), &id("router-1"), now);
    assert_eq!(goes(&here, true, 3), Some(id("b")));
}
