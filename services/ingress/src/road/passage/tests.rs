use std::time::Duration;

use messages::{control::Pong, frame::Pulse, lease::State};
use proptest::prelude::*;

use super::*;

const RUN: RunId = RunId(7);

fn named(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A passage and a cluster of one tokenizer, router and engine around it.
struct Scene {
    passage: Passage,
    now: Instant,
}

impl Scene {
    fn new(n: u32, score_from: Option<u32>) -> Self {
        let now = Instant::now();
        Self { passage: Passage::new(RequestId::mint(), n, score_from, now), now }
    }

    /// One that the tokenizer has taken.
    fn handed_over(n: u32) -> Self {
        let mut scene = Self::new(n, None);
        scene.passage.handed_to(&named("tok"), scene.now);
        scene
    }

    /// One that has come as far as its first token.
    fn running() -> Self {
        let mut scene = Self::handed_over(1);
        scene.render(&[1, 2, 3]);
        scene.accept("router", Role::Router, None);
        scene.accept("decode", Role::Decode, Some(RUN));
        assert!(matches!(scene.delta(0, &[10], 0, "a", None), Effect::Piece { .. }));
        scene
    }

    /// The same, and this process was cut off for a second thereafter.
    fn cut_off() -> Self {
        let mut scene = Self::running();
        scene.now += ms(1000);
        scene.passage.was_cut_off(scene.now);
        scene
    }

    fn say(&mut self, from: &str, role: Role, run: Option<RunId>, body: Body<TextDelta>) -> Effect {
        let (request, attempt) = (self.passage.request, self.passage.attempt());
        self.passage.frame(&named(from), role, Frame { request, attempt, run, body }, self.now)
    }

    fn render(&mut self, prompt: &[u32]) -> Effect {
        self.say("tok", Role::Tokenizer, None, Body::Rendered { prompt: prompt.into() })
    }

    fn accept(&mut self, from: &str, role: Role, run: Option<RunId>) -> Effect {
        self.say(from, role, run, Body::Accepted { instance: named(from), role, prefill: None })
    }

    fn delta(&mut self, at: u32, ids: &[u32], offset: u64, text: &str, end: Option<End>) -> Effect {
        let delta = delta(0, at, ids, offset, text, end);
        self.say("tok", Role::Tokenizer, Some(RUN), Body::Delta(delta))
    }

    fn close(&mut self) -> Effect {
        self.say("tok", Role::Tokenizer, Some(RUN), Body::Closed { usage: Usage::default() })
    }

    fn beat(&mut self, quiet_ms: u32, reached: &[(u32, u32)]) {
        let alive = Alive {
            request: self.passage.request,
            attempt: self.passage.attempt(),
            run: self.passage.run(),
            reached: reached.to_vec(),
            quiet_ms,
            handed_on: true,
        };
        self.passage.alive(&named("tok"), Role::Tokenizer, &alive, self.now);
    }

    fn later(&mut self, milliseconds: u64) -> Check {
        self.now += ms(milliseconds);
        self.passage.check(self.now)
    }

    fn asked(&mut self, milliseconds: u64) -> Vec<Question> {
        match self.later(milliseconds) {
            Check::Ask(questions) => questions,
            other => panic!("expected questions, got {other:?}"),
        }
    }
}

fn delta(choice: u32, at: u32, ids: &[u32], offset: u64, text: &str, end: Option<End>) -> TextDelta {
    TextDelta { choice, at, ids: ids.into(), offset, text: text.to_owned(), logprobs: Vec::new(), end }
}

fn pong(instance: &str, knows_run: bool, pulse: Pulse) -> Answer {
    Answer::Pong(Pong { instance: named(instance), state: State::Ready, pulse, knows_run })
}

#[test]
fn the_client_is_told_200_after_verdict_and_custody_only() {
    let mut scene = Scene::handed_over(1);
    assert!(!scene.passage.is_open());
    scene.render(&[1]);
    assert!(!scene.passage.is_open(), "the tokenizer's word alone is no custody");
    scene.accept("router", Role::Router, None);
    assert!(scene.passage.is_open());
}

#[test]
fn a_routers_heartbeat_tells_what_its_lost_acceptance_would_have() {
    let mut scene = Scene::handed_over(1);
    scene.render(&[1]);
    let (request, attempt) = (scene.passage.request, scene.passage.attempt());
    let alive = Alive { request, attempt, run: None, reached: Vec::new(), quiet_ms: 0, handed_on: false };
    let beat = |scene: &mut Scene, from| {
        scene.passage.alive(&named(from), Role::Router, &alive, scene.now);
    };
    beat(&mut scene, "router");
    assert!(scene.passage.is_open());
    assert!(scene.passage.departed(&named("router"), false), "its death is noticed");

    let mut scene = Scene::running();
    scene.passage.holders.router = None;
    beat(&mut scene, "router-2");
    assert!(scene.passage.holders().router.is_none(), "once an engine has it routers are of no concern");
}

#[test]
fn the_first_run_heard_of_is_kept_and_any_other_cancelled_once() {
    let mut scene = Scene::running();
    let other = Some(RunId(8));
    assert_eq!(scene.accept("decode-2", Role::Decode, other), Effect::Stray(RunId(8)));
    assert_eq!(scene.accept("decode-2", Role::Decode, other), Effect::Nothing);
    let text = Body::Delta(delta(0, 1, &[11], 1, "x", None));
    assert_eq!(scene.say("tok", Role::Tokenizer, other, text), Effect::Nothing);
    assert_eq!(scene.passage.run_at().unwrap().engine, named("decode"));
}

#[test]
fn frames_of_an_older_attempt_are_dropped() {
    let mut scene = Scene::running();
    let old = scene.passage.attempt();
    scene.passage.next_attempt(scene.now);
    let frame = Frame {
        request: scene.passage.request,
        attempt: old,
        run: Some(RUN),
        body: Body::Delta(delta(0, 1, &[11], 1, "b", None)),
    };
    assert_eq!(scene.passage.frame(&named("tok"), Role::Tokenizer, frame, scene.now), Effect::Nothing);
    let journal = scene.passage.journal(false).unwrap();
    assert_eq!((journal.choices[0].output.to_vec(), journal.choices[0].delivered), (vec![10], 1));
    assert!(scene.passage.is_open(), "the client was told 200 already");
}

#[test]
fn it_closes_once_and_counts_what_is_here() {
    let mut scene = Scene::running();
    scene.delta(1, &[2], 1, "", Some(End::StopToken(2)));
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, output_tokens: 2 };
    assert_eq!(scene.close(), Effect::Closed(usage));
    assert_eq!(scene.close(), Effect::Nothing);
}

#[test]
fn a_close_before_all_choices_ended_shows_a_loss() {
    let mut scene = Scene::running();
    assert_eq!(scene.close(), Effect::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn output_before_the_prompt_is_known_is_not_taken() {
    let mut scene = Scene::new(1, None);
    assert_eq!(scene.delta(0, &[10], 0, "a", None), Effect::Trouble);
    assert!(!scene.passage.has_begun());
    assert!(scene.passage.journal(false).is_none());
}

#[test]
fn while_a_replay_is_under_way_gaps_are_its_business() {
    let mut scene = Scene::running();
    assert_eq!(scene.delta(2, &[12], 2, "c", None), Effect::Trouble);
    scene.passage.take_trouble();
    scene.passage.mend(scene.now);
    assert_eq!(scene.delta(3, &[13], 3, "d", None), Effect::Nothing);
    assert!(matches!(scene.delta(1, &[11, 12, 13], 1, "bcd", None), Effect::Piece { .. }));
    assert_eq!(scene.delta(9, &[19], 9, "j", None), Effect::Trouble, "a new gap after it is new trouble");
}

#[test]
fn a_replay_that_brings_nothing_is_trouble_again() {
    let mut scene = Scene::running();
    scene.passage.mend(scene.now);
    for _ in 0..14 {
        scene.now += ms(100);
        scene.beat(0, &[]);
        assert!(matches!(scene.passage.check(scene.now), Check::At(_)));
    }
    assert_eq!(scene.later(100), Check::Trouble);
}

#[test]
fn an_end_that_nobody_asked_for_is_a_failure() {
    let mut scene = Scene::running();
    assert_eq!(scene.delta(1, &[], 1, "", Some(End::Cancelled)), Effect::Trouble);
    let Some(Trouble::Failed(fault)) = scene.passage.take_trouble() else { panic!("a fault") };
    assert_eq!(fault.code, FaultCode::Cancelled);
}

#[test]
fn prompt_scores_come_as_one_and_in_order() {
    let mut scene = Scene::new(1, Some(1));
    scene.render(&[5, 6, 7]);
    let score = |id| TokenLogprobs { id, logprob: Some(-1.0), top: Vec::new() };
    let part = |first, ids: &[u32]| Body::Prompt { first, tokens: ids.iter().map(|id| score(*id)).collect() };
    assert_eq!(scene.say("tok", Role::Tokenizer, Some(RUN), part(1, &[6])), Effect::Nothing);
    let all = Effect::Scored(vec![score(6), score(7)]);
    assert_eq!(scene.say("tok", Role::Tokenizer, Some(RUN), part(1, &[6, 7])), all);
    assert_eq!(scene.say("tok", Role::Tokenizer, Some(RUN), part(1, &[6, 7])), Effect::Nothing);
}

#[test]
fn output_before_all_of_the_prompt_is_scored_shows_a_loss() {
    let mut scene = Scene::new(1, Some(1));
    scene.render(&[1, 2, 3]);
    scene.accept("decode", Role::Decode, Some(RUN));
    assert_eq!(scene.delta(0, &[10], 0, "a", None), Effect::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn a_prompts_first_token_has_no_probability_and_needs_no_report() {
    let rendered = |ids: &[u32]| Body::Rendered { prompt: TokenIds::from(ids) };
    let first = TokenLogprobs { id: 5, logprob: None, top: Vec::new() };
    let mut scene = Scene::new(1, Some(0));
    let alone = scene.say("tok", Role::Tokenizer, None, rendered(&[5]));
    assert_eq!(alone, Effect::Scored(vec![first.clone()]));
    let mut scene = Scene::new(1, Some(0));
    scene.say("tok", Role::Tokenizer, None, rendered(&[5, 6]));
    let second = TokenLogprobs { id: 6, logprob: Some(-1.0), top: Vec::new() };
    let report = Body::Prompt { first: 1, tokens: vec![second.clone()] };
    let all = Effect::Scored(vec![first, second]);
    assert_eq!(scene.say("tok", Role::Tokenizer, Some(RUN), report), all);
}

#[test]
fn a_silent_holder_is_asked_once_and_its_answer_buys_time() {
    let mut scene = Scene::running();
    scene.beat(0, &[]);
    assert!(matches!(scene.later(500), Check::At(_)));
    let questions = scene.asked(100);
    let asked: Vec<Role> = questions.iter().map(|question| question.role).collect();
    assert_eq!(asked, [Role::Tokenizer, Role::Decode]);
    assert!(matches!(scene.later(1), Check::At(_)), "no second question while one is open");
    for question in &questions {
        let answer = pong(question.instance.as_str(), true, Pulse::default());
        assert!(!scene.passage.answered(question, &answer, scene.now));
    }
    assert!(matches!(scene.later(500), Check::At(_)));
}

#[test]
fn heartbeats_keep_questions_away() {
    let mut scene = Scene::running();
    for _ in 0..20 {
        scene.now += ms(250);
        scene.beat(100, &[]);
        scene.delta(1, &[], 1, "", None);
        assert!(matches!(scene.passage.check(scene.now), Check::At(_)));
    }
}

#[test]
fn an_engine_that_its_tokenizer_no_longer_hears_is_asked() {
    let mut scene = Scene::running();
    scene.now += ms(700);
    scene.beat(700, &[]);
    let questions = scene.asked(0);
    assert_eq!(questions.len(), 1);
    assert_eq!((questions[0].role, questions[0].run), (Role::Decode, Some(RUN)));
    assert!(scene.passage.answered(&questions[0], &Answer::Dead, scene.now));
    let dead = Trouble::Dead { role: Role::Decode, instance: named("decode") };
    assert_eq!(scene.passage.take_trouble(), Some(dead));
}

#[test]
fn a_step_older_than_announced_is_a_hung_engine() {
    let mut scene = Scene::running();
    let mut question = None;
    for _ in 0..10 {
        scene.now += ms(250);
        scene.beat(0, &[]);
        if let Check::Ask(mut questions) = scene.passage.check(scene.now) {
            question = questions.pop();
        }
    }
    let question = question.expect("a run that stalls has its engine asked");
    assert_eq!(question.role, Role::Decode);
    let pulse = Pulse { step: 3, age_ms: 2600, bound_ms: 250 };
    assert!(scene.passage.answered(&question, &pong("decode", true, pulse), scene.now));
    assert!(matches!(scene.passage.take_trouble(), Some(Trouble::Dead { role: Role::Decode, .. })));
}

#[test]
fn a_holder_that_knows_nothing_of_the_request_has_lost_it() {
    let mut scene = Scene::running();
    let questions = scene.asked(600);
    assert!(!scene.passage.answered(&questions[0], &pong("tok", true, Pulse::default()), scene.now));
    assert!(scene.passage.answered(&questions[1], &pong("decode", false, Pulse::default()), scene.now));
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Forgotten));
}

#[test]
fn an_answer_that_something_overtook_is_void() {
    let mut scene = Scene::running();
    let questions = scene.asked(600);
    scene.now += ms(10);
    scene.delta(1, &[11], 1, "b", None);
    assert!(!scene.passage.answered(&questions[0], &pong("tok", false, Pulse::default()), scene.now));
}

#[test]
fn a_ping_without_answer_condemns_nobody_who_has_spoken_since() {
    let mut scene = Scene::running();
    let questions = scene.asked(600);
    scene.now += ms(900);
    scene.delta(1, &[11], 1, "b", None);
    for question in &questions {
        assert!(!scene.passage.answered(question, &Answer::Dead, scene.now), "{:?}", question.role);
    }
}

#[test]
fn a_tokenizer_that_answers_but_brings_nothing_has_lost_frames() {
    let mut scene = Scene::running();
    let questions = scene.asked(700);
    for question in &questions {
        let answer = pong(question.instance.as_str(), true, Pulse::default());
        scene.passage.answered(question, &answer, scene.now);
    }
    for question in scene.asked(700) {
        let answer = pong(question.instance.as_str(), true, Pulse::default());
        scene.passage.answered(&question, &answer, scene.now);
    }
    assert_eq!(scene.later(200), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn a_lost_batch_of_others_is_no_trouble() {
    let mut scene = Scene::running();
    scene.passage.lost(&named("tok"), scene.now);
    scene.now += ms(250);
    scene.beat(0, &[(0, 1)]);
    assert!(matches!(scene.later(150), Check::At(_)));
}

#[test]
fn a_lost_batch_of_ours_is_found_by_what_the_sender_has_reached() {
    let mut scene = Scene::running();
    scene.passage.lost(&named("tok"), scene.now);
    scene.now += ms(250);
    scene.beat(0, &[(0, 3)]);
    assert_eq!(scene.later(150), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn an_end_that_went_lost_while_this_process_was_cut_off_is_asked_for_at_once() {
    let mut scene = Scene::cut_off();
    assert!(matches!(scene.later(250), Check::At(_)), "the next heartbeat is on its way");
    assert_eq!(scene.later(100), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn what_goes_on_after_this_process_was_cut_off_and_has_all_that_was_said_is_let_alone() {
    let mut scene = Scene::cut_off();
    scene.now += ms(250);
    scene.beat(0, &[(0, 1)]);
    assert!(matches!(scene.later(150), Check::At(_)));
}

#[test]
fn a_lost_batch_of_several_choices_is_asked_for_whatever_came_since() {
    let mut scene = Scene::handed_over(2);
    scene.render(&[1]);
    scene.accept("decode", Role::Decode, Some(RUN));
    scene.passage.lost(&named("tok"), scene.now);
    scene.delta(0, &[10], 0, "a", None);
    scene.beat(0, &[(0, 1), (1, 0)]);
    assert_eq!(scene.later(350), Check::Trouble, "the end of the other choice may be what was lost");
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn a_lost_prompt_is_had_from_a_replay_and_costs_no_attempt() {
    let mut scene = Scene::handed_over(1);
    scene.passage.lost(&named("tok"), scene.now);
    scene.beat(0, &[(0, 0)]);
    assert!(matches!(scene.later(400), Check::At(_)), "in a queue it keeps its place");
    scene.accept("decode", Role::Decode, Some(RUN));
    assert_eq!(scene.later(0), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
    assert!(scene.passage.run_at().is_some());
}

#[test]
fn a_replay_of_a_run_that_has_nothing_to_say_yet_has_come_to_its_end() {
    let mut scene = Scene::handed_over(1);
    scene.render(&[1]);
    scene.accept("decode", Role::Decode, Some(RUN));
    scene.passage.mend(scene.now);
    scene.now += ms(500);
    scene.beat(500, &[(0, 0)]);
    assert!(scene.passage.is_mending(), "its engine was not heard of since");
    scene.beat(100, &[(0, 0)]);
    assert!(!scene.passage.is_mending());
}

#[test]
fn of_two_tokenizers_that_follow_a_run_the_one_that_was_asked_last_goes_on() {
    let mut scene = Scene::running();
    scene.passage.handed_to(&named("tok-2"), scene.now);
    let (request, attempt, run) = (scene.passage.request, scene.passage.attempt(), scene.passage.run());
    let alive = Alive { request, attempt, run, reached: vec![(0, 1)], quiet_ms: 0, handed_on: true };
    let mut beat = |from| scene.passage.alive(&named(from), Role::Tokenizer, &alive, scene.now);
    assert_eq!(beat("tok"), Effect::Nothing, "the other may not have begun");
    assert_eq!(beat("tok-2"), Effect::Nothing);
    assert_eq!(beat("tok"), Effect::Rival(RUN));
    scene.passage.mend(scene.now);
    let taken_over = scene.passage.alive(&named("tok-3"), Role::Tokenizer, &alive, scene.now);
    assert_eq!(taken_over, Effect::Nothing, "it may be the one that is being asked now");
}

#[test]
fn what_a_router_or_tokenizer_gives_up_while_an_engine_has_it_goes_on() {
    let mut scene = Scene::running();
    let fault = || Body::Failed(Fault::new(FaultCode::Unanswered, "no answer"));
    assert_eq!(scene.say("router", Role::Router, None, fault()), Effect::Nothing);
    assert_eq!(scene.passage.take_trouble(), None);
    scene.say("tok", Role::Tokenizer, None, fault());
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost), "its run needs another to follow it");
    scene.passage.mend(scene.now);
    assert_eq!(scene.say("router", Role::Router, None, fault()), Effect::Nothing, "nor does it end a replay");
}

#[test]
fn a_run_that_no_tokenizer_is_known_to_follow_is_followed_by_another() {
    let mut scene = Scene::new(1, None);
    scene.accept("decode", Role::Decode, Some(RUN));
    scene.passage.holders.tokenizer = None;
    assert_ne!(scene.later(2900), Check::Trouble);
    assert_eq!(scene.later(200), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn a_death_that_is_being_repaired_is_no_news() {
    let mut scene = Scene::running();
    let questions = scene.asked(600);
    assert!(scene.passage.departed(&named("tok"), false), "another request found out first");
    scene.passage.take_trouble();
    scene.passage.mend(scene.now);
    assert!(!scene.passage.answered(&questions[0], &Answer::Dead, scene.now));
}

#[test]
fn an_engine_that_was_told_to_go_has_not_died() {
    let mut scene = Scene::running();
    assert!(scene.passage.departed(&named("decode"), true));
    let trouble = scene.passage.take_trouble();
    assert!(matches!(trouble, Some(Trouble::Failed(Fault { code: FaultCode::Draining, .. }))), "{trouble:?}");
}

#[test]
fn a_departure_counts_only_for_who_holds_the_request() {
    let mut scene = Scene::running();
    assert!(!scene.passage.departed(&named("router"), false), "it has done its part");
    assert!(!scene.passage.departed(&named("stranger"), false));
    assert!(scene.passage.departed(&named("decode"), false));
}

#[test]
fn a_ping_that_failed_for_another_request_condemns_nobody_who_was_heard_since() {
    let mut scene = Scene::running();
    let asked = scene.now;
    scene.now += ms(100);
    scene.beat(0, &[(0, 1)]);
    assert!(!scene.passage.gave_no_sign(&named("decode"), asked));
    assert!(scene.passage.gave_no_sign(&named("decode"), scene.now));
}

#[test]
fn time_in_which_this_process_could_not_hear_is_not_held_against_anyone() {
    let mut scene = Scene::running();
    scene.now += ms(20_000);
    scene.passage.give_time(scene.now);
    assert!(matches!(scene.passage.check(scene.now), Check::At(_)));
}

/// A tokenizer has handed the request on and hears of no run.
fn handed_on(scene: &mut Scene) {
    let (request, attempt) = (scene.passage.request, scene.passage.attempt());
    let alive = Alive { request, attempt, run: None, reached: vec![(0, 0)], quiet_ms: 0, handed_on: true };
    scene.passage.alive(&named("tok"), Role::Tokenizer, &alive, scene.now);
}

#[test]
fn a_request_that_left_its_tokenizer_and_is_nowhere_is_sent_again() {
    let mut scene = Scene::handed_over(1);
    for _ in 0..7 {
        handed_on(&mut scene);
        assert!(matches!(scene.later(250), Check::At(_)));
    }
    handed_on(&mut scene);
    assert_eq!(scene.later(250), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Forgotten));
}

#[test]
fn a_run_that_its_tokenizer_never_heard_of_is_replayed() {
    let mut scene = Scene::handed_over(1);
    scene.accept("decode", Role::Decode, Some(RUN));
    handed_on(&mut scene);
    scene.now += ms(500);
    handed_on(&mut scene);
    assert_eq!(scene.later(500), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Lost));
}

#[test]
fn an_engine_that_is_being_asked_is_not_given_time_by_what_its_tokenizer_did_not_hear() {
    let mut scene = Scene::handed_over(1);
    scene.accept("decode", Role::Decode, Some(RUN));
    handed_on(&mut scene);
    let questions = scene.asked(600);
    handed_on(&mut scene);
    assert_ne!(scene.later(600), Check::Trouble, "the answer says whether there is a run to be followed");
    scene.passage.mend(scene.now);
    let asked = questions.iter().find(|question| question.role == Role::Decode).unwrap();
    assert!(scene.passage.answered(asked, &Answer::Dead, scene.now));
}

#[test]
fn a_request_that_waits_in_a_router_or_whose_run_is_heard_of_is_not_adrift() {
    let mut scene = Scene::handed_over(1);
    for _ in 0..20 {
        handed_on(&mut scene);
        scene.accept("router", Role::Router, None);
        let check = scene.later(250);
        assert!(
            matches!(&check, Check::At(when) if *when > scene.now + ms(100)),
            "nothing is due: {check:?}"
        );
    }
    scene.accept("decode", Role::Decode, Some(RUN));
    handed_on(&mut scene);
    assert_ne!(scene.later(250), Check::Trouble, "it has just left the router");
    scene.beat(0, &[(0, 0)]);
    assert_ne!(scene.later(400), Check::Trouble);
    scene.beat(0, &[(0, 0)]);
    assert_ne!(scene.later(900), Check::Trouble, "the tokenizer follows its run");
}

#[test]
fn a_request_that_nobody_is_known_to_hold_is_sent_again() {
    let mut scene = Scene::new(1, None);
    assert!(matches!(scene.later(2900), Check::At(_)));
    assert_eq!(scene.later(200), Check::Trouble);
    assert_eq!(scene.passage.take_trouble(), Some(Trouble::Forgotten));
}

proptest! {
    /// Frames of two runs and two attempts arrive in any order, any number of times. Never more than one terminal
    /// comes out, and the text that does is that of one run.
    #[test]
    fn one_run_and_at_most_one_terminal_reach_the_client(
        order in prop::collection::vec((0usize..4, 1u64..3, 0u32..2), 1..80),
    ) {
        let mut scene = Scene::new(1, None);
        scene.render(&[1]);
        let words = ["ab", "cd", "ef"];
        let (mut text, mut terminals, mut heard) = (String::new(), 0, None);
        for (place, run, behind) in order {
            let body = match place {
                3 => Body::Closed { usage: Usage::default() },
                at => {
                    let word = if run == 1 { words[at].to_owned() } else { words[at].to_uppercase() };
                    let end = (at == 2).then_some(End::Length);
                    Body::Delta(delta(0, at as u32, &[at as u32], 2 * at as u64, &word, end))
                }
            };
            let attempt = Attempt(1 - behind);
            let (request, run) = (scene.passage.request, RunId(run));
            if attempt == Attempt::FIRST {
                heard.get_or_insert(run);
            }
            let frame = Frame { request, attempt, run: Some(run), body };
            match scene.passage.frame(&named("tok"), Role::Tokenizer, frame, scene.now) {
                Effect::Piece { piece, .. } => text.push_str(&piece.text),
                Effect::Closed(_) => terminals += 1,
                _ => {}
            }
        }
        prop_assert!(terminals <= 1);
        let whole = if heard == Some(RunId(2)) { "ABCDEF" } else { "abcdef" };
        prop_assert!(whole.starts_with(&text));
        prop_assert!(terminals == 0 || text == whole);
    }
}

#[test]
fn engines_that_may_have_the_request_without_a_word_are_told_of_once_with_the_output_by_then() {
    let mut scene = Scene::running();
    let unwatched = |role, name: &str, output| Unwatched { role, instance: named(name), output };
    let prefill = |name: &str| Some(named(name));
    let (instance, role) = (named("decode"), Role::Decode);
    let accepted = Body::Accepted { instance, role, prefill: prefill("prefill-1") };
    scene.say("router", Role::Router, Some(RUN), accepted);
    scene.delta(1, &[11], 1, "b", None);
    let silent = Body::Unanswered { engine: named("decode-2"), prefill: prefill("prefill-2") };
    scene.say("router", Role::Router, None, silent);
    let told = [
        unwatched(Role::Prefill, "prefill-1", 1),
        unwatched(Role::Decode, "decode-2", 2),
        unwatched(Role::Prefill, "prefill-2", 2),
    ];
    assert_eq!(scene.passage.take_unwatched(), told);
    assert!(scene.passage.take_unwatched().is_empty());
}
