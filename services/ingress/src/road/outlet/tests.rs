use std::task::Waker;

use super::*;

const STREAM: Manner = Manner { stream: true, ids: false };
const WHOLE: Manner = Manner { stream: false, ids: false };

fn outlet(manner: Manner, prompts: usize) -> Outlet {
    Outlet::new(prompts, prompts, manner, Arc::new(Backlog::new(10_000, 20_000)))
}

fn text(index: u32, text: &str) -> Event {
    Event::Delta(Delta { index, text: text.to_owned(), tokens: 1, ..Delta::default() })
}

fn closed(prompt: usize) -> Event {
    Event::Closed { prompt, usage: Usage::default() }
}

fn take(outlet: &Outlet) -> (Poll<Option<Result<(), Fault>>>, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = outlet.poll_take(&Context::from_waker(Waker::noop()), &mut events);
    (outcome, events)
}

fn opened(outlet: &Outlet) -> Poll<Result<(), Fault>> {
    outlet.poll_open(&Context::from_waker(Waker::noop()))
}

#[test]
fn a_stream_gives_what_is_there_and_ends_after_the_last() {
    let outlet = outlet(STREAM, 1);
    assert_eq!(take(&outlet).0, Poll::Pending);
    outlet.push(text(0, "a"));
    outlet.push(text(0, "b"));
    assert_eq!(take(&outlet).1, [text(0, "a"), text(0, "b")]);
    outlet.push(closed(0));
    assert_eq!(take(&outlet).1.len(), 1);
    assert_eq!(take(&outlet).0, Poll::Ready(None));
}

#[test]
fn a_collected_answer_has_one_delta_a_choice() {
    let outlet = outlet(WHOLE, 2);
    for (index, part) in [(0, "a"), (1, "x"), (0, "b"), (1, "y")] {
        outlet.push(text(index, part));
    }
    outlet.push(closed(0));
    assert_eq!(take(&outlet).0, Poll::Pending);
    outlet.push(closed(1));
    let (_, events) = take(&outlet);
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            Event::Delta(delta) => Some(delta.text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["ab", "xy"]);
}

#[test]
fn a_client_that_falls_behind_gets_joined_text_and_none_is_lost() {
    let outlet = outlet(STREAM, 1);
    for _ in 0..BEHIND + 100 {
        assert_eq!(outlet.push(text(0, "a")), Fill::Fine);
    }
    let (_, events) = take(&outlet);
    assert_eq!(events.len(), BEHIND);
    let bytes: usize = events
        .iter()
        .map(|event| match event {
            Event::Delta(delta) => delta.text.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(bytes, BEHIND + 100);
}

#[test]
fn bounds_are_told_and_what_is_taken_is_given_back() {
    let backlog = Arc::new(Backlog::new(10_000, 12_000));
    let one = Outlet::new(1, 1, STREAM, backlog.clone());
    let other = Outlet::new(1, 1, STREAM, backlog.clone());
    assert_eq!(one.push(text(0, &"a".repeat(8_000))), Fill::Fine);
    assert_eq!(other.push(text(0, &"a".repeat(8_000))), Fill::Total);
    assert_eq!(one.push(text(0, &"a".repeat(8_000))), Fill::Stream);
    one.fail(Fault::new(FaultCode::SlowClient, "slow"));
    assert_eq!(one.waiting(), 0);
    assert!(matches!(take(&one).0, Poll::Ready(Some(Err(_)))));
    drop(other);
    assert_eq!(backlog.held(), 0);
}

#[test]
fn a_fault_comes_after_what_was_said_before_it() {
    let outlet = outlet(STREAM, 1);
    outlet.open();
    outlet.push(text(0, "a"));
    outlet.fail(Fault::new(FaultCode::EngineFault, "dead"));
    assert_eq!(opened(&outlet), Poll::Ready(Ok(())));
    assert_eq!(take(&outlet).1, [text(0, "a")]);
    assert!(matches!(take(&outlet).0, Poll::Ready(Some(Err(fault))) if fault.code == FaultCode::EngineFault));
}

#[test]
fn a_fault_before_custody_is_the_answer() {
    let outlet = outlet(STREAM, 2);
    outlet.open();
    assert_eq!(opened(&outlet), Poll::Pending, "the second prompt may still be refused");
    outlet.fail(Fault::new(FaultCode::ContextLengthExceeded, "too long"));
    assert!(matches!(opened(&outlet), Poll::Ready(Err(_))));
    assert!(outlet.done().is_cancelled(), "the first prompt is cancelled too");
}
