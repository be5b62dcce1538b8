use messages::{Attempt, InstanceId, Pool, RequestId, Role, load::Started};

use super::*;
use crate::{
    fixtures::{id, lease},
    remote::{Bid, Offer, PassedOver, RemoteRule, There, Verdict},
    settings::RouterSettings,
};

fn considered(instance: &str, overlap_blocks: u32, requests: u32) -> Considered {
    Considered {
        instance: id(instance),
        seen: Candidate { overlap_blocks, requests, ..Candidate::default() },
        cost: Some(f64::from(40 - overlap_blocks)),
        terms: None,
        tried: false,
        doubted: false,
    }
}

fn about(request: RequestId, label: &str) -> About {
    About {
        router: id("router-1"),
        at_ms: 0,
        request,
        attempt: Attempt::FIRST,
        label: Some(label.to_owned()),
        tenant: None,
        pool: Pool::of_model("m", "00"),
    }
}

fn decision(number: u64, chosen: &str) -> Decision {
    Decision {
        number,
        about: about(RequestId::mint(), &format!("label-{number}")),
        held_us: 100,
        basis: Basis::Policy,
        policy: Policy::Kv,
        weights: RouterSettings::default().weights(),
        demand: Demand { prompt_tokens: 640, page_size: 16, session: false },
        candidates: vec![considered("a", 30, 9), considered("b", 10, 3), considered("c", 0, 0)],
        left_out: 0,
        chosen: id(chosen),
        prefill: None,
        remote_prefill: None,
        outcome: Outcome::Offered,
        predicted_cached_tokens: 480,
        cached_tokens: None,
        prefill_cached_tokens: None,
    }
}

#[test]
fn a_decision_is_found_by_id_and_label_and_learns_what_the_engine_found() {
    let mut ledger = Ledger::default();
    // Dispatches are numbered before they are entered.
    for number in [2, 1, 3] {
        ledger.enter(decision(number, "a"), None);
    }
    ledger.close(2, Outcome::Accepted);
    let started = Started { router: id("router-1"), number: 2, cached_tokens: 464 };
    assert!(ledger.started(&id("b"), &started).is_none(), "that is another engine's dispatch");
    let checked = Checked { predicted: 480, found: 464, prompt: 640 };
    assert_eq!(ledger.started(&id("a"), &started), Some(checked));
    let told = ledger.about("label-2");
    assert_eq!((told.len(), told[0].outcome, told[0].cached_tokens), (1, Outcome::Accepted, Some(464)));
    let request = told[0].about.request;
    let as_recorded = serde_json::to_value(request).unwrap();
    assert!(as_recorded.as_str().unwrap().contains('-'));
    for name in [request.to_string().as_str(), as_recorded.as_str().unwrap()] {
        assert_eq!(ledger.about(name)[0].number, 2);
    }
}

#[test]
fn the_ledger_forgets_the_oldest() {
    let mut ledger = Ledger::default();
    (0..5000).for_each(|number| ledger.enter(decision(number, "a"), None));
    assert!(ledger.about("label-0").is_empty());
    assert_eq!(ledger.about("label-4999").len(), 1);
}

#[test]
fn a_shortlist_is_written_out_when_the_decision_is_read() {
    let weights = RouterSettings::default().weights();
    let seen = Candidate { overlap_blocks: 10, prefill_tokens: 300, requests: 2, ..Candidate::default() };
    let shortlist = Shortlist {
        roster: ["a", "b"].map(|name| lease(Role::Decode, name)).into_iter().collect(),
        shown: vec![Shown { place: 1, seen, cost: 7.0, tried: false, doubted: true }],
        left_out: 1,
        least: Some(100),
    };
    let mut ledger = Ledger::default();
    ledger.enter(Decision { candidates: Vec::new(), ..decision(1, "b") }, Some(shortlist));
    let read = ledger.about("label-1").remove(0);
    let terms = Some(weights.terms(&read.demand, &seen, 100));
    let expected =
        Considered { instance: id("b"), seen, cost: Some(7.0), terms, tried: false, doubted: true };
    assert_eq!((read.candidates, read.left_out), (vec![expected], 1));
}

#[test]
fn a_shortened_decision_still_shows_the_chosen_one() {
    let mut decision = decision(1, "c");
    decision.shorten(1);
    let shown: Vec<&InstanceId> = decision.candidates.iter().map(|candidate| &candidate.instance).collect();
    assert_eq!((shown, decision.left_out), (vec![&id("a"), &id("c")], 1));
}

fn by(policy: Policy) -> Changes {
    Changes { policy: Some(policy), ..Changes::default() }
}

#[test]
fn recorded_decisions_replay_under_another_policy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions");
    let recorder = Recorder::open(&path).unwrap();
    (0..30).for_each(|number| recorder.record(decision(number, "a")));
    recorder.record(Decision { basis: Basis::Pin, ..decision(30, "b") });
    drop(recorder);
    let read = || std::io::BufReader::new(std::fs::File::open(&path).unwrap());

    let same = replay(read(), &by(Policy::Kv)).unwrap();
    assert_eq!((same.decisions, same.skipped, same.same), (30, 1, 1.0));
    assert_eq!((same.recorded.cached_share, same.recorded.busiest), (0.75, 3.0));
    let turns = replay(read(), &by(Policy::RoundRobin)).unwrap();
    assert!((turns.replayed.busiest - 1.0).abs() < 1e-9, "{turns:?}");
    assert!(turns.replayed.cached_share < turns.recorded.cached_share);
    let idlest = replay(read(), &by(Policy::LeastLoaded)).unwrap();
    assert_eq!((idlest.same, idlest.replayed.cached_share), (0.0, 0.0));
}

#[test]
fn routers_that_share_a_file_write_whole_lines_while_they_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions");
    std::fs::write(&path, r#"{"number": 1, "rou"#).unwrap();
    let recorders: Vec<Recorder> = (0..4).map(|_| Recorder::open(&path).unwrap()).collect();
    let each = 200;
    std::thread::scope(|scope| {
        for recorder in &recorders {
            scope.spawn(move || (0..each).for_each(|number| recorder.record(decision(number, "a"))));
        }
    });
    let read =
        || replay(std::io::BufReader::new(std::fs::File::open(&path).unwrap()), &Changes::default()).unwrap();
    while read().decisions < 4 * each as usize {
        std::thread::yield_now();
    }
    drop(recorders);
    assert_eq!((read().decisions, read().truncated), (4 * each as usize, 1));
}

#[test]
fn a_session_replays_as_a_session_and_doubted_engines_are_passed_over() {
    let ranked = |instance, session_rank, doubted| {
        let seen = Candidate { session_rank, ..considered(instance, 30, 0).seen };
        Considered { seen, doubted, ..considered(instance, 30, 0) }
    };
    let home = Decision {
        basis: Basis::Session,
        demand: Demand { session: true, ..decision(1, "b").demand },
        candidates: vec![ranked("a", 1, false), ranked("b", 2 << 60, false), ranked("c", 3 << 60, true)],
        ..decision(1, "b")
    };
    let line = serde_json::to_string(&home).unwrap() + "\n";
    let replayed = replay(line.as_bytes(), &by(Policy::LeastLoaded)).unwrap();
    assert_eq!((replayed.by_session, replayed.same), (1, 1.0));
    assert!(replayed.not_reproduced.iter().any(|what| what.contains("ties")));
}

#[test]
fn what_the_prefill_instance_found_is_compared_with_what_was_predicted_of_it() {
    let bid = |missing_tokens| Bid { missing_tokens, queued_tokens: 0, token_ns: 1_000_000 };
    let there = Some(There { instance: id("prefill-1"), bid: bid(140) });
    let offer = Offer { here: bid(640), spares: true, there, passed_over: PassedOver::default() };
    let weighed = RemoteRule::of(&RouterSettings::default()).weigh(offer);
    let remote =
        Decision { prefill: weighed.named().cloned(), remote_prefill: Some(weighed), ..decision(1, "a") };
    let mut ledger = Ledger::default();
    ledger.enter(remote, None);
    let started = Started { router: id("router-1"), number: 1, cached_tokens: 64 };
    let checked = Checked { predicted: 500, found: 64, prompt: 640 };
    assert_eq!(ledger.started(&id("prefill-1"), &started), Some(checked));
    assert_eq!(ledger.started(&id("prefill-2"), &started), None);
    let told = &ledger.about("label-1")[0];
    assert_eq!((told.prefill_cached_tokens, told.cached_tokens), (Some(64), None));
}

#[test]
fn whether_a_prompt_is_computed_elsewhere_is_decided_again_by_other_flags() {
    let rule = RemoteRule::of(&RouterSettings::default());
    let bid = |missing_tokens, queued_tokens| Bid { missing_tokens, queued_tokens, token_ns: 1_000_000 };
    let there = There { instance: id("prefill-1"), bid: bid(1000, 500) };
    let here = bid(1000, 0);
    let passed_over = PassedOver { shunned: 1, ..PassedOver::default() };
    let offer = Offer { here, spares: false, there: Some(there), passed_over };
    let busy = Offer { spares: true, ..offer.clone() };
    let shunned = Offer { there: None, ..offer.clone() };
    let mut file = Vec::new();
    for offer in [None, Some(offer), Some(busy), Some(shunned)] {
        let weighed = offer.map(|offer| rule.weigh(offer));
        // A pinned request is decided nowhere else, and its prompt may be.
        let decision = Decision { basis: Basis::Pin, remote_prefill: weighed, ..decision(1, "a") };
        serde_json::to_writer(&mut file, &decision).unwrap();
        file.push(b'\n');
    }
    let replayed = |changes: Changes| replay(file.as_slice(), &changes).unwrap().remote_prefills;
    let as_recorded = [(Verdict::Named, 1), (Verdict::Shunned, 1), (Verdict::TooSlow, 1)].into();
    let same = replayed(Changes::default());
    assert_eq!((same.decisions, same.unchanged, &same.replayed), (3, 3, &as_recorded));
    assert_eq!(same.recorded, as_recorded);
    let slack = replayed(Changes { remote_prefill_slack: Some(2.0), ..Changes::default() });
    assert_eq!((slack.unchanged, slack.replayed), (2, [(Verdict::Named, 2), (Verdict::Shunned, 1)].into()));
    let patience = replayed(Changes { remote_prefill_patience_ms: Some(100), ..Changes::default() });
    assert_eq!(patience.replayed, [(Verdict::Shunned, 1), (Verdict::TooSlow, 2)].into());
    let tokens = replayed(Changes { remote_prefill_tokens: Some(1001), ..Changes::default() });
    assert_eq!((tokens.unchanged, tokens.replayed), (0, [(Verdict::TooFewTokens, 3)].into()));
}

#[test]
fn who_was_not_dispatched_is_told_of_until_it_is() {
    let mut notes = Notes::default();
    let note = |request, fate| Note { about: about(request, "label"), outcome: fate, held_us: 7, why: None };
    let (waits, refused) = (RequestId::mint(), RequestId::mint());
    notes.put(note(waits, Fate::Queued));
    notes.put(note(refused, Fate::Queued));
    notes.put(note(refused, Fate::Refused));
    let outcomes = |notes: &Notes, name: &str| -> Vec<Fate> {
        notes.about(name).iter().map(|note| note.outcome).collect()
    };
    assert_eq!(outcomes(&notes, &refused.to_string()), [Fate::Refused]);
    assert_eq!(outcomes(&notes, "label").len(), 2);
    notes.drop_of(waits, Attempt::FIRST);
    assert_eq!(outcomes(&notes, "label"), [Fate::Refused]);
    // A repair brings the first one back: that it was dropped before is held against neither.
    notes.put(note(waits, Fate::Held));
    (0..KEPT - 2).for_each(|_| notes.put(note(RequestId::mint(), Fate::Refused)));
    assert_eq!((outcomes(&notes, &waits.to_string()).len(), outcomes(&notes, "label").len()), (1, KEPT));
    (0..5000).for_each(|_| notes.put(note(RequestId::mint(), Fate::Refused)));
    assert!(outcomes(&notes, &refused.to_string()).is_empty(), "the oldest are forgotten");
}

/// What is read of both by other programs.
#[test]
fn a_decision_and_a_note_are_one_flat_object_each() {
    let request = "0190a1b2-c3d4-7000-8000-000000000001".parse().unwrap();
    let note = Note { about: about(request, "mine"), outcome: Fate::Failed, held_us: 7, why: None };
    let header = r#""router":"router-1","at_ms":0,"request":"0190a1b2-c3d4-7000-8000-000000000001","attempt":1,"label":"mine","tenant":null,"pool":"POOL""#;
    let header = header.replace("POOL", &Pool::of_model("m", "00").to_string());
    let written = serde_json::to_string(&note).unwrap();
    assert_eq!(written, format!(r#"{{{header},"outcome":"failed","held_us":7,"why":null}}"#));

    let decision = Decision { about: about(request, "mine"), ..decision(3, "a") };
    let written = serde_json::to_string(&decision).unwrap();
    assert!(
        written.starts_with(&format!(r#"{{"number":3,{header},"held_us":100,"basis":"policy""#)),
        "{written}"
    );
    assert_eq!(serde_json::from_str::<Decision>(&written).unwrap(), decision);
}

#[test]
fn a_file_of_something_else_is_refused_with_the_line() {
    let error = replay("{}\n".as_bytes(), &Changes::default()).unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}
