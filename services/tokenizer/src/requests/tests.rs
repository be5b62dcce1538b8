use messages::{
    frame::{End, TokenBatch, Usage},
    generate::{RunAt, TextOptions},
};
use proptest::prelude::*;

use super::*;
use crate::{
    decode::{Choice, Settings, StopStrings},
    samples::{BYTE_LEVEL, bytes_of},
};

const ATTEMPT: Attempt = Attempt(1);
const RUN: RunId = RunId(7);

fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn engine() -> Engine {
    Engine { instance: id("decode-1"), role: Role::Decode }
}

fn batch(frames: Vec<Frame<TokenDelta>>, alive: Vec<Alive>) -> TokenBatch {
    Batch { from: id("decode-1"), role: Role::Decode, number: 1, sampled_us: 1, frames, alive, pulse: None }
}

fn choices(n: u32, stop: &[String]) -> Vec<Choice> {
    let text = TextOptions { stop: stop.to_vec(), ..TextOptions::default() };
    let stops = StopStrings::new(stop);
    let settings = Settings { text: &text, stops: &stops, min_tokens: 0, begins: true };
    (0..n).map(|index| Choice::new(index, &BYTE_LEVEL, &settings)).collect()
}

/// A request of `n` choices that has been submitted.
struct Bench {
    requests: Requests,
    request: RequestId,
    ticket: Ticket,
    now: Instant,
    out: Vec<Action>,
}

impl Bench {
    fn new(n: u32, stop: &[&str]) -> Self {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        Self::with(choices(n, &stop), None)
    }

    fn with(choices: Vec<Choice>, attach: Option<RunAt>) -> Self {
        let mut requests = Requests::new(id("tokenizer-1"));
        let (request, now) = (RequestId::mint(), Instant::now());
        let ticket = requests.admit(request, ATTEMPT, &id("ingress-1"), false, now).unwrap();
        let mut out = Vec::new();
        let rendered = Some([1, 2, 3].as_slice().into());
        let prepared = Prepared { rendered, prompt_tokens: 3, choices, replayed: Vec::new(), attach };
        requests.prepared(ticket, prepared, &mut out);
        Self { requests, request, ticket, now, out }
    }

    fn frame(&self, run: RunId, body: Body<TokenDelta>) -> Frame<TokenDelta> {
        Frame { request: self.request, attempt: ATTEMPT, run: Some(run), body }
    }

    fn alive(&self, attempt: Attempt, reached: u32) -> Alive {
        Alive {
            request: self.request,
            attempt,
            run: Some(RUN),
            reached: vec![(0, reached)],
            quiet_ms: 0,
            handed_on: false,
        }
    }

    fn deliver(&mut self, frames: Vec<Frame<TokenDelta>>) -> Vec<Action> {
        self.out.clear();
        self.requests.batch(&BYTE_LEVEL, batch(frames, Vec::new()), self.now, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn tokens(&mut self, choice: u32, at: u32, text: &str, end: Option<End>) -> Vec<Action> {
        let frame = self.frame(RUN, Body::Delta(delta(choice, at, &bytes_of(text), end)));
        self.deliver(vec![frame])
    }
}

fn delta(choice: u32, at: u32, ids: &[u32], end: Option<End>) -> TokenDelta {
    TokenDelta { choice, at, ids: ids.into(), logprobs: Vec::new(), end }
}

fn bodies(actions: &[Action]) -> Vec<&Body<TextDelta>> {
    let mut bodies = Vec::new();
    for action in actions {
        if let Action::Say { frame, .. } = action {
            bodies.push(&frame.body);
        }
    }
    bodies
}

#[test]
fn tokens_go_to_ingress_as_text_and_the_end_closes() {
    let mut bench = Bench::new(1, &[]);
    assert!(matches!(bodies(&bench.out)[..], [Body::Rendered { .. }]));
    let said = bench.tokens(0, 0, "hi", None);
    assert!(matches!(bodies(&said)[..], [Body::Delta(delta)] if delta.text == "hi"));
    let said = bench.tokens(0, 2, "!", Some(End::Length));
    assert!(matches!(bodies(&said)[..], [Body::Delta(delta)] if delta.end == Some(End::Length)));
    let usage = Usage { prompt_tokens: 3, cached_tokens: 2, output_tokens: 9 };
    let closed = bench.frame(RUN, Body::Closed { usage });
    let said = bench.deliver(vec![closed]);
    let usage = Usage { output_tokens: 3, ..usage };
    assert_eq!(bodies(&said), [&Body::Closed { usage }]);
    assert!(bench.requests.is_empty());
}

#[test]
fn a_stop_string_ends_the_choice_and_cancels_it_at_the_engine() {
    let mut bench = Bench::new(2, &["."]);
    let said = bench.tokens(0, 0, "a.b", None);
    let Some(Action::Cancel { at, cancel }) = said.last() else { panic!("{said:?}") };
    assert_eq!((at, cancel.run, cancel.choice), (&engine(), Some(RUN), Some(0)));
    assert_eq!(bench.tokens(0, 3, "cd", Some(End::Cancelled)), [], "the rest is swallowed");
    let said = bench.tokens(1, 0, "x.", None);
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, output_tokens: 4 };
    assert_eq!(bodies(&said).last(), Some(&&Body::Closed { usage }), "nothing more is to be waited for");
    assert!(bench.requests.is_empty());
    assert_eq!(bench.tokens(1, 2, "y", None), [], "what is still on its way is known for what it is");
}

#[test]
fn a_choice_whose_cancel_went_lost_is_cancelled_again() {
    let mut bench = Bench::new(2, &["."]);
    bench.tokens(0, 0, "a.", None);
    assert_eq!(bench.tokens(0, 2, "b", None), [], "the cancel may be on its way");
    bench.now += CANCEL_AGAIN;
    let said = bench.tokens(0, 3, "c", None);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.choice == Some(0)), "{said:?}");
    assert_eq!(bench.tokens(0, 4, "d", None), []);
}

#[test]
fn a_second_run_is_cancelled_once_and_not_heard() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    let other = bench.frame(RunId(8), Body::Delta(delta(0, 1, &bytes_of("z"), None)));
    let said = bench.deliver(vec![other.clone(), other]);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.run == Some(RunId(8))), "{said:?}");
}

#[test]
fn a_gap_is_filled_by_one_attach() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    let asked = bench.tokens(0, 2, "c", None);
    let [Action::Attach { attach, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((attach.run, &attach.from[..], &attach.inbox), (RUN, &[(0, 1)][..], &id("tokenizer-1")));
    assert_eq!(bench.tokens(0, 3, "d", None), [], "asked already");
    let said = bench.tokens(0, 1, "bcd", None);
    assert!(matches!(bodies(&said)[..], [Body::Delta(delta)] if delta.text == "bcd"));
    bench.now += ATTACH_AGAIN;
    let alive = bench.requests.beat(bench.now, bench.now, &mut bench.out);
    assert!(bench.out.is_empty(), "nothing is missing");
    assert_eq!(alive[&id("ingress-1")][0].reached, [(0, 4)]);
}

#[test]
fn what_one_choice_lacks_is_asked_for_though_another_one_goes_on() {
    let mut bench = Bench::new(2, &[]);
    bench.tokens(0, 0, "a", None);
    let lost = |bench: &mut Bench| {
        bench.out.clear();
        bench.requests.lost(&id("decode-1"), bench.now, &mut bench.out);
        std::mem::take(&mut bench.out)
    };
    let asked = lost(&mut bench);
    let [Action::Attach { attach, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(lost(&mut bench), [], "asked just now");
    let beat = |bench: &mut Bench| {
        bench.now += ATTACH_AGAIN;
        bench.tokens(1, 0, "x", None);
        bench.requests.beat(bench.now, bench.now, &mut bench.out);
        bench.out.len()
    };
    assert_eq!(beat(&mut bench), 1, "the replay may have been in what was lost");
    assert_eq!(beat(&mut bench), 0, "what was asked for comes");
    bench.requests.attached(attach, None, &mut bench.out);
    assert_eq!(beat(&mut bench), 1, "nobody heard the question");
}

#[test]
fn what_was_asked_for_just_before_a_cut_is_asked_for_again_after_it() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    bench.requests.lost(&id("decode-1"), bench.now, &mut bench.out);
    bench.out.clear();
    bench.requests.was_cut_off();
    bench.requests.beat(bench.now, bench.now, &mut bench.out);
    assert!(matches!(bench.out[..], [Action::Attach { .. }]), "{:?}", bench.out);
}

#[test]
fn an_end_that_went_lost_with_all_after_it_is_asked_for() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    bench.out.clear();
    bench.now += QUIET_AFTER / 2;
    bench.requests.beat(bench.now, bench.now, &mut bench.out);
    assert_eq!(bench.out, [], "the next heartbeat may be on its way");
    bench.now += QUIET_AFTER / 2;
    bench.requests.beat(bench.now, bench.now, &mut bench.out);
    assert!(
        matches!(&bench.out[..], [Action::Attach { attach, .. }] if attach.from == [(0, 1)]),
        "{:?}",
        bench.out
    );
}

#[test]
fn a_heartbeat_that_is_ahead_shows_a_loss() {
    let mut bench = Bench::new(1, &[]);
    let [level, ahead] = [0, 3].map(|reached| batch(Vec::new(), vec![bench.alive(ATTEMPT, reached)]));
    bench.out.clear();
    bench.requests.batch(&BYTE_LEVEL, level, bench.now, &mut bench.out);
    assert_eq!(bench.out, []);
    bench.requests.batch(&BYTE_LEVEL, ahead, bench.now, &mut bench.out);
    assert!(matches!(&bench.out[..], [Action::Attach { attach, .. }] if attach.from == [(0, 0)]));
}

#[test]
fn a_run_that_its_engine_forgot_goes_back_to_ingress() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    let asked = bench.tokens(0, 2, "c", None);
    let [Action::Attach { attach, .. }] = &asked[..] else { panic!("{asked:?}") };
    bench.requests.attached(attach, None, &mut bench.out);
    assert!(bench.out.is_empty(), "no answer is no proof");
    bench.requests.attached(attach, Some(false), &mut bench.out);
    assert!(matches!(bodies(&bench.out)[..], [Body::Failed(fault)] if fault.code == FaultCode::NoInstance));
}

#[test]
fn the_same_attempt_is_taken_once_and_a_newer_one_replaces_it() {
    let mut bench = Bench::new(1, &[]);
    let mut admit = |attempt, attaches| {
        bench.requests.admit(bench.request, attempt, &id("ingress-1"), attaches, bench.now)
    };
    assert_eq!(admit(ATTEMPT, false), None);
    let taken_over = admit(ATTEMPT, true).unwrap();
    let next = admit(ATTEMPT.next(), false).unwrap();
    assert_eq!(admit(ATTEMPT, true), None);
    let holds = [bench.ticket, taken_over, next].map(|ticket| bench.requests.holds(ticket));
    assert_eq!(holds, [false, false, true]);
}

#[test]
fn frames_wait_until_a_taken_over_run_is_prepared() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "ab", None);
    let now = bench.now;
    let ticket = bench.requests.admit(bench.request, ATTEMPT, &id("ingress-1"), true, now).unwrap();
    let closed = bench.frame(RUN, Body::Closed { usage: Usage::default() });
    assert_eq!(bench.deliver(vec![closed]), []);
    let attach = Some(RunAt { engine: id("decode-1"), run: RUN });
    let prepared =
        Prepared { rendered: None, prompt_tokens: 3, choices: choices(1, &[]), replayed: Vec::new(), attach };
    let mut out = Vec::new();
    assert!(bench.requests.prepared(ticket, prepared, &mut out));
    assert!(matches!(&out[..], [Action::Attach { at, .. }] if *at == engine()));
}

#[test]
fn a_cancel_ends_what_it_means_and_nothing_else() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    let cancel = |run, choice| Cancel { request: bench.request, attempt: ATTEMPT, run, choice };
    let (stray, choice, all) = (cancel(Some(RunId(8)), None), cancel(None, Some(0)), cancel(None, None));
    assert!(!bench.requests.cancel(&stray) && !bench.requests.cancel(&choice));
    assert!(bench.requests.cancel(&all));
    assert_eq!(bench.tokens(0, 1, "b", None), []);
}

#[test]
fn a_run_that_nobody_here_wants_is_cancelled_once_it_goes_on() {
    let mut bench = Bench::new(1, &[]);
    let request = RequestId::mint();
    let body = Body::Delta(delta(0, 0, &bytes_of("x"), None));
    let frame = Frame { request, attempt: ATTEMPT, run: Some(RUN), body };
    assert_eq!(bench.deliver(vec![frame.clone()]), [], "another tokenizer may have taken it over just now");
    bench.now += CANCEL_AGAIN;
    let said = bench.deliver(vec![frame.clone(), frame]);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.request == request), "{said:?}");
}

#[test]
fn who_stood_still_leaves_runs_alone_that_others_have_taken_over() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    bench.now += GIVEN_UP_AFTER;
    bench.requests.beat(bench.now, bench.now, &mut Vec::new());
    assert!(bench.requests.is_empty());
    assert_eq!(bench.tokens(0, 1, "b", None), [], "what came meanwhile is read only now");
    let alive = vec![bench.alive(ATTEMPT, 2)];
    bench.out.clear();
    bench.requests.batch(&BYTE_LEVEL, batch(Vec::new(), alive.clone()), bench.now, &mut bench.out);
    assert_eq!(bench.out, []);
    bench.now += CANCEL_AGAIN;
    bench.requests.batch(&BYTE_LEVEL, batch(Vec::new(), alive), bench.now, &mut bench.out);
    assert!(
        matches!(&bench.out[..], [Action::Cancel { .. }]),
        "a run that still reports here: {:?}",
        bench.out
    );
}

#[test]
fn a_run_whose_cancel_went_lost_is_cancelled_again() {
    let mut bench = Bench::new(1, &[]);
    let all = Cancel { request: bench.request, attempt: ATTEMPT, run: None, choice: None };
    assert!(bench.requests.cancel(&all));
    assert_eq!(bench.tokens(0, 0, "a", None), [], "the cancel may be on its way");
    bench.now += CANCEL_AGAIN;
    let said = bench.tokens(0, 1, "b", None);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.run == Some(RUN)), "{said:?}");
    assert_eq!(bench.tokens(0, 2, "c", None), []);
}

#[test]
fn a_run_of_an_attempt_that_another_one_follows_is_cancelled() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    let (next, ingress) = (ATTEMPT.next(), id("ingress-1"));
    bench.requests.admit(bench.request, next, &ingress, false, bench.now).unwrap();
    assert_eq!(bench.tokens(0, 1, "b", None), [], "its cancel may be on its way");
    bench.now += CANCEL_AGAIN;
    let said = bench.tokens(0, 2, "c", None);
    let [Action::Cancel { cancel, .. }] = &said[..] else { panic!("{said:?}") };
    assert_eq!((cancel.attempt, cancel.run), (ATTEMPT, Some(RUN)), "the attempt that goes on is not meant");
}

#[test]
fn a_run_of_an_older_attempt_that_only_computes_its_prompt_is_cancelled_too() {
    let mut bench = Bench::new(1, &[]);
    let next = ATTEMPT.next();
    bench.requests.admit(bench.request, next, &id("ingress-1"), false, bench.now).unwrap();
    let sign = |bench: &mut Bench| {
        bench.out.clear();
        let alive = vec![bench.alive(ATTEMPT, 0)];
        bench.requests.batch(&BYTE_LEVEL, batch(Vec::new(), alive), bench.now, &mut bench.out);
        std::mem::take(&mut bench.out)
    };
    assert_eq!(sign(&mut bench), []);
    bench.now += CANCEL_AGAIN;
    let said = sign(&mut bench);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.attempt == ATTEMPT), "{said:?}");
}

#[test]
fn a_run_that_another_tokenizer_follows_is_dropped_and_goes_on() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "ab", None);
    let release = whole(bench.request, ATTEMPT, RUN);
    assert!(bench.requests.cancel(&release));
    assert_eq!(bench.tokens(0, 3, "d", None), []);
    let alive = bench.alive(ATTEMPT, 4);
    bench.requests.batch(&BYTE_LEVEL, batch(Vec::new(), vec![alive]), bench.now, &mut bench.out);
    assert_eq!(bench.out, [], "what was on its way here neither cancels the run nor calls it back");
}

#[test]
fn a_stay_that_never_heard_of_its_run_is_released_too() {
    let mut bench = Bench::new(1, &[]);
    let release = whole(bench.request, ATTEMPT, RUN);
    assert!(bench.requests.cancel(&release));
    let ingress = id("ingress-1");
    bench.requests.admit(bench.request, ATTEMPT, &ingress, true, bench.now).unwrap();
    assert!(!bench.requests.cancel(&release), "one that is about to follow a run may mean another");
}

#[test]
fn of_a_request_that_was_released_another_run_is_cancelled_all_the_same() {
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    assert!(bench.requests.cancel(&whole(bench.request, ATTEMPT, RUN)));
    let other = bench.frame(RunId(8), Body::Delta(delta(0, 0, &bytes_of("z"), None)));
    assert_eq!(bench.deliver(vec![other.clone()]), []);
    bench.now += CANCEL_AGAIN;
    assert_eq!(bench.tokens(0, 1, "b", None), []);
    let said = bench.deliver(vec![other]);
    assert!(matches!(&said[..], [Action::Cancel { cancel, .. }] if cancel.run == Some(RunId(8))), "{said:?}");
}

#[test]
fn ingress_is_told_whether_a_router_has_the_request() {
    let mut bench = Bench::new(1, &[]);
    let beat = |requests: &mut Requests| {
        let alive = requests.beat(bench.now, bench.now, &mut Vec::new());
        alive[&id("ingress-1")][0].handed_on
    };
    assert!(!beat(&mut bench.requests));
    bench.requests.handed_on(bench.ticket);
    assert!(beat(&mut bench.requests));
}

#[test]
fn requests_of_a_dead_ingress_and_of_silent_engines_are_dropped() {
    let mut bench = Bench::new(1, &[]);
    assert_eq!(bench.requests.ingress_departed(&id("ingress-2")), 0);
    assert_eq!(bench.requests.ingress_departed(&id("ingress-1")), 1);
    let mut bench = Bench::new(1, &[]);
    bench.tokens(0, 0, "a", None);
    bench.now += GIVEN_UP_AFTER;
    assert!(bench.requests.beat(bench.now, bench.now, &mut Vec::new()).is_empty());
    assert!(bench.requests.is_empty());
}

/// What became of a batch on its way.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Delivered,
    Lost,
    Twice,
    Late,
}

/// An engine that holds a finished run and says it step by step.
struct Log {
    ids: Vec<Vec<u32>>,
    cancelled: Vec<bool>,
}

impl Log {
    fn from(&self, choice: usize, at: u32, count: usize) -> TokenDelta {
        let ids = &self.ids[choice];
        let start = (at as usize).min(ids.len());
        let end = (start + count).min(ids.len());
        let last = end == ids.len() || self.cancelled[choice];
        delta(choice as u32, start as u32, &ids[start..end], last.then_some(End::Length))
    }
}

/// What ingress has of each choice.
fn read(texts: &mut [(String, Vec<u32>, Option<End>)], actions: &[Action]) -> bool {
    let mut closed = false;
    for body in bodies(actions) {
        match body {
            Body::Delta(delta) => {
                let (text, ids, end) = &mut texts[delta.choice as usize];
                assert!(!closed && end.is_none(), "nothing follows an end");
                assert_eq!((delta.offset, delta.at), (text.len() as u64, ids.len() as u32));
                text.push_str(&delta.text);
                ids.extend(delta.ids.iter());
                *end = delta.end.clone();
            }
            Body::Closed { .. } => closed = true,
            _ => {}
        }
    }
    closed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does_ingress_gets_the_same(
        ids in prop::collection::vec(prop::collection::vec(0u32..1300, 1..20), 1..4),
        stop in prop::collection::vec("[a-e ]{1,2}", 0..3),
        fates in prop::collection::vec(prop_oneof![
            4 => Just(Fate::Delivered), 2 => Just(Fate::Lost), 1 => Just(Fate::Twice), 1 => Just(Fate::Late)
        ], 60),
    ) {
        let n = ids.len() as u32;
        let expected: Vec<(String, Vec<u32>, Option<End>)> = (0..).zip(&ids).map(|(index, ids)| {
            let mut choice = choices(n, &stop).remove(index);
            match choice.accept(&BYTE_LEVEL, delta(index as u32, 0, ids, Some(End::Length))) {
                crate::decode::Outcome::Text(d) | crate::decode::Outcome::Stopped(d) => (d.text, d.ids.to_vec(), d.end),
                other => panic!("{other:?}"),
            }
        }).collect();

        let mut bench = Bench::with(choices(n, &stop), None);
        let mut log = Log { cancelled: vec![false; ids.len()], ids };
        let mut texts = vec![(String::new(), Vec::new(), None); n as usize];
        let steps = log.ids.iter().map(Vec::len).max().unwrap();
        let closed_frame = bench.frame(RUN, Body::Closed { usage: Usage::default() });
        let mut queue: VecDeque<Vec<Frame<TokenDelta>>> = (0..steps).map(|step| {
            let at = |choice: &usize| step < log.ids[*choice].len();
            (0..log.ids.len()).filter(at).map(|c| bench.frame(RUN, Body::Delta(log.from(c, step as u32, 1)))).collect()
        }).collect();
        queue.push_back(vec![closed_frame.clone()]);
        let mut fates = fates.into_iter();
        let mut closed = false;
        let mut gap = false;
        for _ in 0..400 {
            let Some(frames) = queue.pop_front() else {
                // All is said; heartbeats find what is still missing.
                bench.now += ATTACH_AGAIN;
                let reached = log.ids.iter().map(|ids| ids.len() as u32);
                let alive = Alive { request: bench.request, attempt: ATTEMPT, run: Some(RUN),
                    reached: (0..).zip(reached).collect(), quiet_ms: 0, handed_on: false };
                bench.out.clear();
                bench.requests.batch(&BYTE_LEVEL, batch(Vec::new(), vec![alive]), bench.now, &mut bench.out);
                let mut actions = std::mem::take(&mut bench.out);
                bench.requests.beat(bench.now, bench.now, &mut actions);
                closed |= read(&mut texts, &actions);
                replay(&bench, &mut log, &actions, &mut queue, &closed_frame);
                if queue.is_empty() { break } else { continue }
            };
            let fate = fates.next().unwrap_or(Fate::Delivered);
            let times = match fate {
                Fate::Lost => { gap = true; continue }
                Fate::Late => { queue.insert(1.min(queue.len()), frames); continue }
                Fate::Twice => 2,
                Fate::Delivered => 1,
            };
            let mut actions = Vec::new();
            if std::mem::take(&mut gap) {
                bench.requests.lost(&id("decode-1"), bench.now, &mut actions);
            }
            for _ in 0..times {
                actions.extend(bench.deliver(frames.clone()));
            }
            closed |= read(&mut texts, &actions);
            replay(&bench, &mut log, &actions, &mut queue, &closed_frame);
        }
        prop_assert!(closed && bench.requests.is_empty());
        prop_assert_eq!(texts, expected);
    }
}

/// Does what the engine does when it is asked.
fn replay(
    bench: &Bench,
    log: &mut Log,
    actions: &[Action],
    queue: &mut VecDeque<Vec<Frame<TokenDelta>>>,
    closed: &Frame<TokenDelta>,
) {
    for action in actions {
        match action {
            Action::Cancel { cancel: Cancel { choice: Some(choice), .. }, .. } => {
                log.cancelled[*choice as usize] = true;
            }
            Action::Attach { attach, .. } => {
                let again = attach.from.iter().map(|(choice, at)| {
                    bench.frame(RUN, Body::Delta(log.from(*choice as usize, *at, usize::MAX / 2)))
                });
                queue.push_back(again.chain([closed.clone()]).collect());
            }
            _ => {}
        }
    }
}
