use std::{collections::HashMap, time::Instant};

use messages::{
    Attempt, InstanceId, RequestId, Role, RunId, TokenIds,
    control::{Attach, Cancel},
    frame::{Alive, Body, Frame, TextDelta, TokenDelta, Usage},
    generate::RunAt,
};

use super::{
    ATTACH_AGAIN, Action, CANCEL_AGAIN, CLOSED_AFTER, GIVEN_UP_AFTER, QUIET_AFTER, Sender, UNHEARD_AFTER,
    whole,
};
use crate::decode::{Choice, Outcome, Pieces};

/// Runs that were turned away, remembered so that each is cancelled once.
const STRAYS: usize = 16;

/// An instance that holds a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    pub instance: InstanceId,
    pub role: Role,
}

/// What a request has become once its prompt is known.
#[derive(Debug)]
pub struct Prepared {
    /// The prompt, if ingress does not have it yet.
    pub rendered: Option<TokenIds>,
    pub prompt_tokens: u32,
    pub choices: Vec<Choice>,
    /// What the replay of a journal brought to light.
    pub replayed: Vec<TextDelta>,
    /// The run to follow, if there is one already.
    pub attach: Option<RunAt>,
}

/// A request that is here.
#[derive(Debug)]
pub(super) struct Live {
    pub number: u64,
    pub request: RequestId,
    pub attempt: Attempt,
    pub ingress: InstanceId,
    /// When a frame last went to ingress.
    pub spoke: Instant,
    /// Frames are known to be missing.
    pub missing: bool,
    stage: Stage,
    /// A router has taken it.
    pub handed_on: bool,
    run: Option<(RunId, Engine)>,
    strays: Vec<RunId>,
    choices: Vec<Choice>,
    /// Choices that have ended here and not at the engine, with the moment since which that is known.
    overruns: HashMap<u32, Instant>,
    prompt_tokens: u32,
    cached_tokens: u32,
    /// When the run's engine was last heard of.
    heard: Instant,
    asked: Option<Instant>,
}

/// How far a stay has come.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The prompt is not known yet, and frames are not for this stay.
    Preparing,
    Open,
    /// The last choice ended then; the terminal frame is to come.
    Ended(Instant),
}

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    On,
    /// Frames before this one are missing.
    Missing,
    /// The terminal frame has been said.
    Over,
}

impl Live {
    pub fn new(number: u64, request: RequestId, attempt: Attempt, ingress: InstanceId, now: Instant) -> Self {
        Self {
            number,
            request,
            attempt,
            ingress,
            spoke: now,
            missing: false,
            stage: Stage::Preparing,
            handed_on: false,
            run: None,
            strays: Vec::new(),
            choices: Vec::new(),
            overruns: HashMap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            heard: now,
            asked: None,
        }
    }

    pub fn run(&self) -> Option<RunId> {
        self.run.as_ref().map(|(run, _)| *run)
    }

    /// Whether this may be its run: it is, or none was heard of yet.
    pub fn may_follow(&self, run: RunId) -> bool {
        self.is_prepared() && self.run().is_none_or(|held| held == run)
    }

    pub fn is_at(&self, engine: &InstanceId) -> bool {
        self.run.as_ref().is_some_and(|(_, at)| at.instance == *engine)
    }

    pub fn all_ended(&self) -> bool {
        self.choices.iter().all(Choice::ended)
    }

    /// Whether frames are for this stay.
    pub fn is_prepared(&self) -> bool {
        !matches!(self.stage, Stage::Preparing)
    }

    /// Whether the terminal frame has been to come for so long that it must be lost.
    pub fn is_unclosed(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Ended(at) if now.duration_since(at) >= CLOSED_AFTER)
    }

    pub fn say(&self, run: Option<RunId>, body: Body<TextDelta>) -> Action {
        let frame = Frame { request: self.request, attempt: self.attempt, run, body };
        Action::Say { to: self.ingress.clone(), frame }
    }

    fn tell(&mut self, body: Body<TextDelta>, now: Instant, out: &mut Vec<Action>) {
        self.spoke = now;
        out.push(self.say(self.run(), body));
    }

    /// The prompt is known and the choices stand where the journal left them.
    pub fn begin(&mut self, prepared: Prepared, out: &mut Vec<Action>) {
        self.stage = Stage::Open;
        self.prompt_tokens = prepared.prompt_tokens;
        self.choices = prepared.choices;
        if let Some(RunAt { engine, run }) = prepared.attach {
            self.run = Some((run, Engine { instance: engine, role: Role::Decode }));
        }
        if let Some(prompt) = prepared.rendered {
            out.push(self.say(None, Body::Rendered { prompt }));
        }
        for delta in prepared.replayed {
            out.push(self.say(self.run(), Body::Delta(delta)));
        }
    }

    /// Has the frames of a run that is there already sent here.
    pub fn follow(&mut self, me: &InstanceId, out: &mut Vec<Action>) {
        if self.run.is_some() {
            self.missing = true;
            self.ask_again(me, self.heard, out);
        }
    }

    /// Locks onto the first run; others are cancelled.
    pub fn listens(
        &mut self,
        from: Sender<'_>,
        run: Option<RunId>,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(run) = run else { return true };
        match &self.run {
            None => self.run = Some((run, from.engine())),
            Some((locked, _)) if *locked == run => {}
            Some(_) => {
                if !self.strays.contains(&run) && self.strays.len() < STRAYS {
                    self.strays.push(run);
                    let cancel = whole(self.request, self.attempt, run);
                    out.push(Action::Cancel { at: from.engine(), cancel });
                }
                return false;
            }
        }
        self.heard = now;
        true
    }

    /// Takes a frame of the run in.
    pub fn take(
        &mut self,
        pieces: &Pieces,
        body: Body<TokenDelta>,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Verdict {
        match body {
            // The engine tells ingress itself.
            Body::Accepted { .. } | Body::Unanswered { .. } | Body::Rendered { .. } => {}
            Body::Started { cached_tokens, queued_us } => {
                self.cached_tokens = cached_tokens;
                self.tell(Body::Started { cached_tokens, queued_us }, now, out);
            }
            Body::Prompt { first, tokens } => self.tell(Body::Prompt { first, tokens }, now, out),
            Body::Delta(delta) => return self.delta(pieces, delta, now, out),
            Body::Closed { usage } => {
                if !self.all_ended() {
                    self.missing = true;
                    return Verdict::Missing;
                }
                self.close(usage.cached_tokens, out);
                return Verdict::Over;
            }
            Body::Failed(fault) => {
                self.tell(Body::Failed(fault), now, out);
                return Verdict::Over;
            }
        }
        Verdict::On
    }

    fn delta(&mut self, pieces: &Pieces, delta: TokenDelta, now: Instant, out: &mut Vec<Action>) -> Verdict {
        let index = delta.choice;
        let Some(choice) = self.choices.iter_mut().find(|choice| choice.index == index) else {
            return Verdict::On;
        };
        if choice.ended() {
            let end = u64::from(delta.at) + delta.ids.len() as u64;
            let overrun = end.saturating_sub(u64::from(choice.at()));
            metrics::counter!("stator_tokenizer_stop_overrun_tokens_total").increment(overrun);
            if overrun > 0 && delta.end.is_none() {
                self.overrun(index, now, out);
            }
            return Verdict::On;
        }
        match choice.accept(pieces, delta) {
            Outcome::Known => Verdict::On,
            Outcome::Gap => {
                self.missing = true;
                Verdict::Missing
            }
            Outcome::Text(text) => {
                self.tell(Body::Delta(text), now, out);
                self.caught_up();
                if self.all_ended() {
                    self.stage = Stage::Ended(now);
                }
                Verdict::On
            }
            Outcome::Stopped(text) => {
                self.tell(Body::Delta(text), now, out);
                self.caught_up();
                metrics::counter!("stator_tokenizer_stop_strings_total").increment(1);
                self.cancel_choice(index, out);
                // The engine's own terminal frame would come a step later and say no more.
                if self.all_ended() {
                    self.close(self.cached_tokens, out);
                    return Verdict::Over;
                }
                Verdict::On
            }
        }
    }

    /// The engine goes on with a choice that has ended here: its cancel is on its way, or was lost.
    fn overrun(&mut self, index: u32, now: Instant, out: &mut Vec<Action>) {
        let since = self.overruns.entry(index).or_insert(now);
        if now.saturating_duration_since(*since) >= CANCEL_AGAIN {
            *since = now;
            self.cancel_choice(index, out);
        }
    }

    fn cancel_choice(&self, index: u32, out: &mut Vec<Action>) {
        if let Some((run, engine)) = &self.run {
            let cancel = Cancel { choice: Some(index), ..whole(self.request, self.attempt, *run) };
            out.push(Action::Cancel { at: engine.clone(), cancel });
        }
    }

    /// Says that all choices have ended, with the tokens that the client got.
    pub fn close(&self, cached_tokens: u32, out: &mut Vec<Action>) {
        let output_tokens = self.choices.iter().map(Choice::at).sum();
        let cached_tokens = self.cached_tokens.max(cached_tokens);
        let usage = Usage { prompt_tokens: self.prompt_tokens, cached_tokens, output_tokens };
        out.push(self.say(self.run(), Body::Closed { usage }));
    }

    /// New tokens of a choice came in order: if an attach was asked for, it has brought them. Of other choices they say
    /// nothing.
    fn caught_up(&mut self) {
        if self.choices.len() == 1 {
            self.missing = false;
            self.asked = None;
        }
    }

    /// Nobody knows what became of an attach: what it was to bring may still be missing.
    pub fn unanswered(&mut self) {
        self.missing |= self.choices.len() > 1;
    }

    /// What was asked for will not come.
    pub fn unasked(&mut self) {
        self.asked = None;
    }

    /// Whether the engine has got further than its frames here.
    pub fn lags(&self, reached: &[(u32, u32)]) -> bool {
        reached.iter().any(|(index, at)| {
            self.choices.iter().any(|choice| choice.index == *index && !choice.ended() && choice.at() < *at)
        })
    }

    /// Asks the engine for everything from here on, unless it was asked just now.
    pub fn ask_again(&mut self, me: &InstanceId, now: Instant, out: &mut Vec<Action>) {
        let Some((run, engine)) = &self.run else { return };
        if self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ATTACH_AGAIN) {
            return;
        }
        self.asked = Some(now);
        if self.choices.len() > 1 {
            // What is shown to be missing from now on is asked for once more, whatever comes of this.
            self.missing = false;
        }
        let from = self.choices.iter().map(|choice| (choice.index, choice.at())).collect();
        let attach = Attach { request: self.request, run: *run, inbox: me.clone(), from };
        metrics::counter!("stator_tokenizer_attaches_total").increment(1);
        out.push(Action::Attach { at: engine.clone(), attach });
    }

    /// Whether its run is not over and nothing was heard of it for a while.
    pub fn is_quiet(&self, now: Instant) -> bool {
        let is_open = matches!(self.stage, Stage::Open);
        is_open && self.run.is_some() && now.saturating_duration_since(self.heard) >= QUIET_AFTER
    }

    /// Nobody brings anything for this request any more: its run reports elsewhere or its engine is gone, which is for
    /// ingress to repair.
    pub fn is_forsaken(&self, now: Instant) -> bool {
        let limit = if self.run.is_some() { GIVEN_UP_AFTER } else { UNHEARD_AFTER };
        self.is_prepared() && now.saturating_duration_since(self.heard) >= limit
    }

    pub fn alive(&self, now: Instant) -> Alive {
        let quiet = now.saturating_duration_since(self.heard).as_millis();
        Alive {
            request: self.request,
            attempt: self.attempt,
            run: self.run(),
            reached: self.choices.iter().map(|choice| (choice.index, choice.at())).collect(),
            quiet_ms: u32::try_from(quiet).unwrap_or(u32::MAX),
            handed_on: self.handed_on,
        }
    }
}
