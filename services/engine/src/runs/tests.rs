use messages::{
    TokenIds, codec,
    frame::{End, TokenLogprobs},
    submit::{ChoiceStart, Sampling, Submit},
};
use models::TokenLogprob;

use super::*;

fn submit(choices: &[(u32, &[u32])]) -> Submit {
    let start = |(index, output): &(u32, &[u32])| ChoiceStart { index: *index, output: (*output).into() };
    let [tokenizer, ingress] = ["tokenizer-1", "ingress-1"].map(|name| name.parse().unwrap());
    let (pool, prompt) = (messages::Pool::of_model("m", "00"), [1, 2, 3].as_slice().into());
    Submit {
        run: Some(RunId(1)),
        choices: choices.iter().map(start).collect(),
        max_tokens: 8,
        ..Submit::new(pool, prompt, tokenizer, ingress)
    }
}

fn runs_with(choices: &[(u32, &[u32])]) -> (Runs, RequestId) {
    let request = RequestId::mint();
    let mut runs = Runs::default();
    runs.insert(RunLog::new(request, Attempt::FIRST, RunId(1), &submit(choices)));
    (runs, request)
}

fn token(choice: u32, position: u32, token: u32) -> Event {
    Event::Token { run: RunKey(1), choice, position, token, logprob: None, top: Vec::new() }
}

fn ended(choice: u32, reason: EndReason) -> Event {
    Event::Ended { run: RunKey(1), choice, reason }
}

fn deltas(frames: &[Addressed]) -> Vec<(u32, u32, Vec<u32>, Option<End>)> {
    let delta = |frame: &Addressed| match &frame.1.body {
        Body::Delta(d) => Some((d.choice, d.at, d.ids.to_vec(), d.end.clone())),
        _ => None,
    };
    frames.iter().filter_map(delta).collect()
}

#[test]
fn the_end_of_a_choice_travels_with_its_last_token() {
    let (mut runs, _) = runs_with(&[(0, &[]), (1, &[])]);
    let mut frames = Vec::new();
    runs.step(vec![token(0, 0, 7), token(1, 0, 8), ended(1, EndReason::Stop(8))], &mut frames);
    assert_eq!(deltas(&frames), [(0, 0, vec![7], None), (1, 0, vec![8], Some(End::StopToken(8)))]);
}

#[test]
fn an_attach_replays_from_the_position_asked_for_and_redirects() {
    let (mut runs, request) = runs_with(&[(0, &[50, 51]), (1, &[])]);
    let mut frames = Vec::new();
    runs.step(vec![token(0, 2, 7), token(1, 0, 8)], &mut frames);
    runs.step(vec![token(0, 3, 9), ended(0, EndReason::Length)], &mut frames);
    let inbox: InstanceId = "tokenizer-2".parse().unwrap();
    let attach = Attach { request, run: RunId(1), inbox: inbox.clone(), from: vec![(0, 3)] };
    let replayed = runs.attach(&attach).unwrap();
    assert_eq!(deltas(&replayed), [(0, 3, vec![9], Some(End::Length)), (1, 0, vec![8], None)]);
    assert!(replayed.iter().all(|(to, _)| *to == inbox));
    frames.clear();
    runs.step(vec![token(1, 1, 10)], &mut frames);
    assert_eq!(frames[0].0, inbox, "frames go to the new inbox from now on");
}

#[test]
fn an_ended_run_is_replayed_with_its_terminal_and_forgotten_later() {
    let (mut runs, request) = runs_with(&[(0, &[])]);
    let mut frames = Vec::new();
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, output_tokens: 1 };
    let close = Event::RunClosed { run: RunKey(1), usage };
    runs.step(vec![token(0, 0, 7), ended(0, EndReason::Length), close], &mut frames);
    assert_eq!(runs.live(), 0);
    let attach = Attach { request, run: RunId(1), inbox: "tokenizer-2".parse().unwrap(), from: Vec::new() };
    let replayed = runs.attach(&attach).unwrap();
    assert_eq!(replayed.last().unwrap().1.body, Body::Closed { usage });
    runs.forget_old(Instant::now() + KEEP_LOG + Duration::from_secs(1));
    assert!(runs.attach(&attach).is_none());
}

#[test]
fn logits_that_are_not_finite_are_named() {
    let (mut runs, _) = runs_with(&[(0, &[])]);
    let mut frames = Vec::new();
    let close = Event::RunClosed { run: RunKey(1), usage: Usage::default() };
    runs.step(vec![ended(0, EndReason::NotFinite), close], &mut frames);
    let [(_, frame)] = &frames[..] else { panic!("{frames:?}") };
    let Body::Failed(fault) = &frame.body else { panic!("{frame:?}") };
    assert_eq!(fault.code, FaultCode::EngineFault);
    assert!(fault.message.starts_with("logits are not finite"), "{}", fault.message);
}

#[test]
fn a_choice_that_failed_fails_the_run_once() {
    let (mut runs, _) = runs_with(&[(0, &[]), (1, &[])]);
    let mut frames = Vec::new();
    let close = Event::RunClosed { run: RunKey(1), usage: Usage::default() };
    let events = vec![
        ended(0, EndReason::DeadlineExceeded),
        ended(1, EndReason::DeadlineExceeded),
        close.clone(),
        close,
    ];
    runs.step(events, &mut frames);
    let failures: Vec<_> = frames.iter().filter(|f| matches!(&f.1.body, Body::Failed(_))).collect();
    assert_eq!((failures.len(), frames.len()), (1, 1));
    assert_eq!(runs.live(), 0);
}

#[test]
fn a_cancel_means_its_attempt_and_older_ones_or_one_run() {
    let (mut runs, request) = runs_with(&[(0, &[])]);
    let mut newer = RunLog::new(request, Attempt(2), RunId(2), &submit(&[(0, &[])]));
    newer.inbox = "tokenizer-2".parse().unwrap();
    runs.insert(newer);
    let cancel = |attempt, run| Cancel { request, attempt: Attempt(attempt), run, choice: None };
    assert_eq!(runs.meant_by(&cancel(1, None)), [RunId(1)]);
    assert_eq!(runs.meant_by(&cancel(2, None)).len(), 2);
    assert_eq!(runs.meant_by(&cancel(2, Some(RunId(2)))), [RunId(2)]);
    assert!(runs.meant_by(&Cancel { request: RequestId::mint(), ..cancel(9, None) }).is_empty());
}

#[test]
fn what_engines_have_died_under_is_held_against_it_until_it_got_further_here() {
    let mut runs = Runs::default();
    let given = vec![5; 40];
    let submit = Submit { deaths: Submit::POISON_AFTER, ..submit(&[(0, &given), (1, &[])]) };
    runs.insert(RunLog::new(RequestId::mint(), Attempt::FIRST, RunId(1), &submit));
    let mut frames = Vec::new();
    for position in 0..16 {
        assert!(runs.has_poison());
        runs.step(vec![token(0, 40 + position, 7), token(1, position, 8)], &mut frames);
    }
    assert!(!runs.has_poison());
}

#[test]
fn runs_without_frames_show_a_sign_of_life_to_their_inbox() {
    let (mut runs, _) = runs_with(&[(0, &[50])]);
    let later = Instant::now() + Duration::from_secs(1);
    let silent = runs.silent(later);
    let alive = &silent[&"tokenizer-1".parse::<InstanceId>().unwrap()][0];
    assert_eq!((alive.run, alive.reached.as_slice()), (Some(RunId(1)), [(0, 1)].as_slice()));
    assert!(runs.silent(Instant::now() - Duration::from_secs(1)).is_empty());
}

#[test]
fn tokens_computed_for_this_run_elsewhere_are_not_cached_ones() {
    let started =
        |cached_tokens| Event::Started { run: RunKey(1), cached_tokens, queue_time: Duration::ZERO };
    let told = |here: u32, elsewhere: Option<u32>| {
        let mut runs = Runs::default();
        let dispatch = Some(("router-1".parse().unwrap(), 4));
        let submit = Submit { dispatch, ..submit(&[(0, &[])]) };
        runs.insert(RunLog::new(RequestId::mint(), Attempt::FIRST, RunId(1), &submit));
        runs.waits(RunId(1), here);
        elsewhere.into_iter().for_each(|tokens| runs.cached_elsewhere(RunId(1), tokens));
        let mut frames = Vec::new();
        let began = runs.step(vec![started(64)], &mut frames);
        match &frames[0].1.body {
            Body::Started { cached_tokens, .. } => (*cached_tokens, began[0].1),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(16, None), (16, 16));
    assert_eq!(told(16, Some(48)), (48, 16), "routers learn what this engine's cache was worth");
    assert_eq!(told(32, Some(16)), (32, 32));
    assert_eq!(told(0, Some(96)), (64, 0), "what has not landed was computed here");
}

/// The most that can be asked for.
fn likely() -> Vec<TokenLogprob> {
    let token = |token| TokenLogprob { token: u32::MAX - token, logprob: -1.5 };
    (0..u32::from(Sampling::MAX_TOP_LOGPROBS)).map(token).collect()
}

/// What every nats-server carries.
const SMALLEST_BUS: usize = 1 << 20;

#[test]
fn frames_fit_the_bus_however_much_they_say_again() {
    let tokens = 5000;
    let (mut runs, request) = runs_with(&[(0, &[50])]);
    let mut frames = Vec::new();
    for position in 1..=tokens {
        let (token, logprob) = (u32::MAX - position, Some(-0.5));
        let event = Event::Token { run: RunKey(1), choice: 0, position, token, logprob, top: likely() };
        runs.step(vec![event], &mut frames);
    }
    runs.step(vec![ended(0, EndReason::Length)], &mut frames);
    let attach =
        Attach { request, run: RunId(1), inbox: "tokenizer-2".parse().unwrap(), from: vec![(0, 11)] };
    let replayed = runs.attach(&attach).unwrap();
    let mut next = 11;
    for (_, frame) in &replayed {
        assert!(codec::encode(frame).len() < SMALLEST_BUS / 4);
        let Body::Delta(delta) = &frame.body else { panic!("{frame:?}") };
        let ids = (next..).take(delta.ids.len()).map(|position| u32::MAX - position);
        assert_eq!((delta.at, &delta.ids), (next, &ids.collect::<TokenIds>()));
        assert!(delta.logprobs.iter().map(|token| token.id).eq(delta.ids.iter()));
        next += delta.ids.len() as u32;
        assert_eq!(delta.end.is_some(), next > tokens, "the end comes last");
    }
    assert_eq!(next, tokens + 1);
}

#[test]
fn log_probabilities_of_a_long_prompt_fit_the_bus_at_once_and_again() {
    let prompt: TokenIds = (0..5000).map(|token| u32::MAX - token).collect();
    let submit = Submit { prompt: prompt.clone(), score_prompt_from: Some(0), ..submit(&[(0, &[])]) };
    let (mut runs, request) = (Runs::default(), RequestId::mint());
    runs.insert(RunLog::new(request, Attempt::FIRST, RunId(1), &submit));
    let mut frames = Vec::new();
    let tokens = vec![(-0.5, likely()); prompt.len() - 1];
    runs.step(vec![Event::PromptScored { run: RunKey(1), first: 1, tokens }], &mut frames);
    let attach = Attach { request, run: RunId(1), inbox: "tokenizer-2".parse().unwrap(), from: Vec::new() };
    for frames in [frames, runs.attach(&attach).unwrap()] {
        let mut scored: Vec<TokenLogprobs> = Vec::new();
        for (_, frame) in frames {
            assert!(codec::encode(&frame).len() < SMALLEST_BUS / 4);
            let Body::Prompt { first, tokens } = frame.body else { continue };
            assert_eq!(first as usize, 1 + scored.len());
            scored.extend(tokens);
        }
        assert!(scored.iter().map(|token| token.id).eq(prompt.iter().skip(1)));
    }
}
