use messages::{
    RequestId, RunId, TokenIds,
    frame::{Body, Frame, TextDelta},
};

use super::*;

const HOLD: Duration = Duration::from_secs(30);

fn named(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn say(passage: &mut Passage, from: &str, role: Role, run: Option<u64>, body: Body<TextDelta>) {
    let frame = Frame { request: passage.request, attempt: passage.attempt(), run: run.map(RunId), body };
    passage.frame(&named(from), role, frame, Instant::now());
}

/// A request that an engine computes, with this many tokens here.
fn aboard(engine: &str, tokens: u32) -> Passage {
    let mut passage = Passage::new(RequestId::mint(), 1, None, Instant::now());
    board(&mut passage, engine);
    for at in 0..tokens {
        let (ids, text) = (TokenIds::from(&[at][..]), "x".to_owned());
        let offset = u64::from(at);
        let delta = TextDelta { choice: 0, at, ids, offset, text, logprobs: Vec::new(), end: None };
        say(&mut passage, "tok", Role::Tokenizer, Some(1), Body::Delta(delta));
    }
    passage
}

fn board(passage: &mut Passage, engine: &str) {
    let prompt = TokenIds::from(&[1][..]);
    say(passage, "tok", Role::Tokenizer, None, Body::Rendered { prompt });
    let (instance, role) = (named(engine), Role::Decode);
    say(passage, engine, role, Some(1), Body::Accepted { instance, role, prefill: None });
}

fn dead(role: Role, name: &str) -> Trouble {
    Trouble::Dead { role, instance: named(name) }
}

fn failed(code: FaultCode) -> Trouble {
    Trouble::Failed(Fault::new(code, "it failed"))
}

fn unanswered(name: &str) -> Unwatched {
    Unwatched { role: Role::Decode, instance: named(name), output: 0 }
}

fn record() -> Record {
    Record::new(Instant::now(), HOLD)
}

fn given_up(remedy: Remedy) -> Option<FaultCode> {
    match remedy {
        Remedy::GiveUp(fault) => Some(fault.code),
        _ => None,
    }
}

#[test]
fn a_dead_tokenizer_costs_no_recompute_while_the_run_lives() {
    let remedy = record().remedy(&dead(Role::Tokenizer, "tok"), &aboard("decode-1", 2), Instant::now());
    let Remedy::Replay(run_at) = remedy else { panic!("{remedy:?}") };
    assert_eq!((run_at.engine, run_at.run), (named("decode-1"), RunId(1)));
}

#[test]
fn a_dead_tokenizer_without_a_run_means_a_new_attempt() {
    let passage = Passage::new(RequestId::mint(), 1, None, Instant::now());
    let remedy = record().remedy(&dead(Role::Tokenizer, "tok"), &passage, Instant::now());
    assert_eq!(remedy, Remedy::Again { wait: Duration::ZERO });
}

#[test]
fn each_dead_engine_counts_and_a_third_ends_it() {
    let (mut record, now) = (record(), Instant::now());
    for (deaths, engine) in [(0, "decode-1"), (1, "decode-2")] {
        assert_eq!(record.deaths(), deaths);
        let remedy = record.remedy(&dead(Role::Decode, engine), &aboard(engine, 1), now);
        assert_eq!(remedy, Remedy::Again { wait: Duration::ZERO });
    }
    assert_eq!(record.deaths(), 2);
    assert_eq!(record.avoid(), [named("decode-1"), named("decode-2")]);
    let remedy = record.remedy(&dead(Role::Decode, "decode-3"), &aboard("decode-3", 1), now);
    assert_eq!(given_up(remedy), Some(FaultCode::EngineFault));
}

#[test]
fn deaths_count_no_more_once_it_got_further() {
    let (mut record, now) = (record(), Instant::now());
    for (engine, output, deaths) in [("a", 3, 1), ("b", 5, 2), ("c", 21, 1), ("d", 36, 2)] {
        let remedy = record.remedy(&dead(Role::Decode, engine), &aboard(engine, output), now);
        assert_eq!(remedy, Remedy::Again { wait: Duration::ZERO });
        assert_eq!(record.deaths(), deaths, "{engine}");
    }
}

#[test]
fn engines_that_died_before_they_answered_count_as_others_do() {
    let (mut record, now) = (record(), Instant::now());
    let (silent, refused) = (["decode-1", "decode-2"].map(unanswered), failed(FaultCode::NoInstance));
    let passage = Passage::new(RequestId::mint(), 1, None, now);
    assert_eq!(record.unwatched(silent.to_vec(), &refused, 0), silent);
    assert_eq!(record.avoid(), [named("decode-1"), named("decode-2")]);
    record.died(&silent[0].instance, 0);
    assert!(matches!(record.remedy(&refused, &passage, now), Remedy::Again { .. }));
    assert_eq!(record.deaths(), 1, "the other one lives");

    let trouble = dead(Role::Decode, "decode-3");
    assert_eq!(record.unwatched(Vec::new(), &trouble, 0), silent[1..], "it may have died since");
    record.died(&silent[1].instance, 0);
    assert_eq!(record.deaths(), 2);
    let remedy = record.remedy(&trouble, &aboard("decode-3", 1), now);
    assert_eq!(given_up(remedy), Some(FaultCode::EngineFault));
}

#[test]
fn an_engine_that_computed_the_prompt_is_asked_for_until_the_request_got_further() {
    let prefill = Unwatched { role: Role::Prefill, ..unanswered("prefill-1") };
    let trouble = dead(Role::Decode, "decode-1");
    for (output, asked) in [(HARMLESS - 1, 1), (HARMLESS, 0)] {
        let mut record = record();
        assert_eq!(record.unwatched(vec![prefill.clone()], &trouble, output).len(), asked);
        assert!(record.avoid().is_empty(), "it may be in good health");
    }
    let (mut record, now) = (record(), Instant::now());
    record.unwatched(vec![prefill], &trouble, 0);
    record.died(&named("prefill-1"), 0);
    assert!(matches!(record.remedy(&trouble, &aboard("decode-1", 1), now), Remedy::Again { .. }));
    let remedy = record.remedy(&dead(Role::Decode, "decode-2"), &aboard("decode-2", 1), now);
    assert_eq!(given_up(remedy), Some(FaultCode::EngineFault), "two others may die of it, no more");
}

#[test]
fn attempts_count_anew_once_it_got_further() {
    let (mut record, now, drains) = (record(), Instant::now(), failed(FaultCode::Draining));
    let pauses = [0, 1, 2].map(|doubled| BACK_OFF * 2u32.pow(doubled));
    for stretch in 0..3 {
        let passage = aboard("decode-1", 1 + stretch * HARMLESS);
        for wait in pauses {
            assert_eq!(record.remedy(&drains, &passage, now), Remedy::Again { wait });
        }
    }
}

#[test]
fn attempts_are_bounded() {
    let (mut record, now) = (record(), Instant::now());
    let passage = aboard("decode-1", 1);
    for _ in 1..ATTEMPTS {
        assert!(matches!(record.remedy(&failed(FaultCode::Draining), &passage, now), Remedy::Again { .. }));
    }
    assert_eq!(
        given_up(record.remedy(&failed(FaultCode::Draining), &passage, now)),
        Some(FaultCode::EngineFault)
    );
}

#[test]
fn replays_without_progress_become_a_new_attempt() {
    let (mut record, now) = (record(), Instant::now());
    let passage = aboard("decode-1", 1);
    for _ in 0..REPLAYS {
        assert!(matches!(record.remedy(&Trouble::Lost, &passage, now), Remedy::Replay(_)));
    }
    assert!(matches!(record.remedy(&Trouble::Lost, &passage, now), Remedy::Again { .. }));
}

#[test]
fn a_run_that_cannot_be_followed_is_computed_anew() {
    let mut passage = aboard("decode-1", 1);
    passage.mend(Instant::now());
    let remedy = record().remedy(&failed(FaultCode::Internal), &passage, Instant::now());
    assert!(matches!(remedy, Remedy::Again { .. }));
}

#[test]
fn overload_is_passed_on_unless_an_engine_had_taken_the_request() {
    let now = Instant::now();
    let overloaded = failed(FaultCode::Overloaded);
    let mut fresh = Passage::new(RequestId::mint(), 1, None, now);
    assert_eq!(given_up(record().remedy(&overloaded, &fresh, now)), Some(FaultCode::Overloaded));
    let mut record = record();
    for _ in 0..2 * ATTEMPTS {
        assert!(matches!(record.remedy(&overloaded, &aboard("d", 0), now), Remedy::Again { .. }));
    }
    assert!(matches!(record.remedy(&overloaded, &aboard("d", 1), now), Remedy::Again { .. }));
    fresh.next_attempt(now);
    assert!(matches!(record.remedy(&overloaded, &fresh, now), Remedy::Again { .. }));
}

#[test]
fn what_no_other_instance_would_answer_differently_is_final() {
    use FaultCode as Code;
    let codes = [
        Code::InvalidRequest,
        Code::ContextLengthExceeded,
        Code::NeverFits,
        Code::TooLarge,
        Code::DeadlineExceeded,
        Code::Internal,
    ];
    for code in codes {
        let remedy = record().remedy(&failed(code), &aboard("d", 1), Instant::now());
        assert_eq!(given_up(remedy), Some(code));
    }
}

#[test]
fn without_instances_it_is_held_for_a_while_and_no_longer() {
    let (mut record, now) = (record(), Instant::now());
    let passage = aboard("d", 0);
    let nobody = failed(FaultCode::NoInstance);
    for _ in 0..10 {
        assert!(matches!(record.remedy(&nobody, &passage, now), Remedy::Again { .. }));
    }
    assert_eq!(given_up(record.remedy(&nobody, &passage, now + HOLD)), Some(FaultCode::NoInstance));
}

#[test]
fn a_request_that_has_waited_for_long_is_held_anew_after_a_death() {
    let (mut record, late) = (record(), Instant::now() + 2 * HOLD);
    let passage = aboard("d", 0);
    let nobody = failed(FaultCode::NoInstance);
    assert!(matches!(record.remedy(&dead(Role::Router, "r"), &passage, late), Remedy::Again { .. }));
    let soon = late + HOLD / 2;
    assert!(
        matches!(record.remedy(&nobody, &passage, soon), Remedy::Again { .. }),
        "the router may come back"
    );
    assert_eq!(given_up(record.remedy(&nobody, &passage, late + HOLD)), Some(FaultCode::NoInstance));
}

#[test]
fn engines_that_do_not_answer_a_request_that_has_waited_for_long_are_tried_again_and_not_for_ever() {
    let (mut record, late) = (record(), Instant::now() + HOLD);
    let (passage, silent) = (aboard("d", 0), failed(FaultCode::Unanswered));
    for _ in 1..ATTEMPTS {
        assert!(matches!(record.remedy(&silent, &passage, late), Remedy::Again { .. }));
    }
    assert_eq!(given_up(record.remedy(&silent, &passage, late)), Some(FaultCode::Unanswered));
}
