//! Requests that wait for room, and whose turn it is.

use super::*;

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
