//! Requests that engines have died under.

use super::*;

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
