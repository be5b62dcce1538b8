use super::*;
use crate::fixtures::id;

const RULE: RemoteRule =
    RemoteRule { from_tokens: 256, slack: 1.2, patience_ms: 1000, overhead_ms: 5.0, token_ns: 5000.0 };

fn bid(missing_tokens: u32, queued_tokens: u32) -> Bid {
    Bid { missing_tokens, queued_tokens, token_ns: 500_000 }
}

fn weigh(rule: &RemoteRule, here: Bid, spares: bool, remotes: &[Bid]) -> Weighed {
    let remotes: Vec<_> = remotes.iter().copied().enumerate().collect();
    let (here, first) = soonest(here, &remotes);
    let there = first.map(|(place, bid)| There { instance: id(&format!("p{place}")), bid });
    rule.weigh(Offer { here, spares, there, passed_over: PassedOver::default() })
}

/// What is best for an engine that has no other request.
fn best(here: Bid, remotes: &[Bid]) -> Option<String> {
    weigh(&RULE, here, false, remotes).named().map(InstanceId::to_string)
}

fn some(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn a_long_prompt_goes_to_an_idle_prefill_instance() {
    assert_eq!(best(bid(2000, 0), &[bid(2000, 900), bid(2000, 0)]), some("p1"));
}

#[test]
fn a_prompt_that_is_short_or_cached_here_stays() {
    assert_eq!(best(bid(255, 5000), &[bid(255, 0)]), None);
    let never = RemoteRule { from_tokens: 0, ..RULE };
    assert_eq!(weigh(&never, bid(9000, 0), true, &[bid(1, 0)]).verdict, Verdict::Off);
}

#[test]
fn a_prefill_queue_longer_than_computing_it_here_keeps_it_here() {
    assert_eq!(best(bid(1000, 0), &[bid(1000, 400)]), None);
    assert_eq!(best(bid(1000, 400), &[bid(1000, 400)]), some("p0"));
}

#[test]
fn an_engine_that_decodes_for_others_waits_longer_for_a_prefill_instance() {
    let verdict = |queued| weigh(&RULE, bid(1000, 0), true, &[bid(1000, queued)]).verdict;
    assert_eq!(verdict(2100), Verdict::Named);
    assert_eq!(verdict(2300), Verdict::TooSlow, "that is a second too late");
}

#[test]
fn a_prefix_cached_there_makes_up_for_a_queue() {
    assert_eq!(best(bid(1000, 0), &[bid(100, 800), bid(1000, 100)]), some("p0"));
}

#[test]
fn an_instance_that_has_measured_nothing_is_no_miracle() {
    let fresh = Bid { token_ns: 0, ..bid(1000, 800) };
    assert_eq!(best(bid(1000, 0), &[fresh]), None);
    let nobody = Bid { token_ns: 0, ..bid(1000, 0) };
    assert_eq!(best(nobody, &[fresh]), None, "nobody has measured anything");
}

#[test]
fn what_was_weighed_adds_up() {
    let weighed = weigh(&RULE, bid(1000, 0), true, &[bid(800, 100)]);
    let times = Times { here_ms: 500.0, there_ms: Some(460.0), transfer_ms: 10.0, there_at_most_ms: 1600.0 };
    assert_eq!((weighed.verdict, weighed.times), (Verdict::Named, times));
}

#[test]
fn without_an_instance_to_ask_the_reason_is_told() {
    let strangers = PassedOver { other_layout: 2, ..PassedOver::default() };
    let verdict = |missing, passed_over| {
        RULE.weigh(Offer { here: bid(missing, 0), spares: false, there: None, passed_over }).verdict
    };
    assert_eq!(verdict(1000, strangers), Verdict::OtherLayout);
    assert_eq!(verdict(1000, PassedOver { too_small: 1, ..strangers }), Verdict::TooSmall);
    assert_eq!(verdict(1000, PassedOver { too_small: 1, doubted: 1, ..strangers }), Verdict::Doubted);
    assert_eq!(verdict(1000, PassedOver { doubted: 1, shunned: 1, ..strangers }), Verdict::Shunned);
    assert_eq!(verdict(10, strangers), Verdict::TooFewTokens);
}
