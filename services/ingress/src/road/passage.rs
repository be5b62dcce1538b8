//! The way of one request through the cluster, as ingress sees it: a pure state machine. Frames, heartbeats,
//! answers to pings and clock readings go in; what is new for the client, and what is wrong, comes out.

mod doubts;
mod scores;
mod watch;

use std::time::{Duration, Instant};

use messages::{
    Attempt, Fault, FaultCode, InstanceId, RequestId, Role, RunId, TokenIds,
    frame::{Alive, Body, End, Frame, TextDelta, TokenLogprobs, Usage},
    generate::{Journal, RunAt},
};

use super::{
    holders::{Follower, Holders},
    strand::{Piece, Strand, Taken},
};

use doubts::Doubts;
use scores::{Scored, Scores};
pub use watch::{Answer, Check, Question};

/// Runs that were turned away, remembered so that each is cancelled once.
const STRAYS: usize = 16;

/// What the shell has to do about a frame.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Nothing,
    /// New text or tokens of a choice.
    Piece {
        choice: u32,
        piece: Piece,
    },
    /// The log probabilities of the prompt, all of them.
    Scored(Vec<TokenLogprobs>),
    /// Every choice has ended and all of it is here.
    Closed(Usage),
    /// A second run of this attempt: to be cancelled.
    Stray(RunId),
    /// Another tokenizer than the one that was asked to follows this run too: it is to let go of it.
    Rival(RunId),
    /// See [`Passage::take_trouble`].
    Trouble,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Frames are missing; their sender may be in good health.
    Lost,
    /// A holder is alive and knows nothing of the request.
    Forgotten,
    /// A holder died or hangs.
    Dead { role: Role, instance: InstanceId },
    /// Some hop ended the attempt.
    Failed(Fault),
}

/// An engine that may have the request, and says nothing of it to ingress: it did not answer when it was offered it, or
/// it computes the prompt for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwatched {
    pub role: Role,
    pub instance: InstanceId,
    /// Tokens of output when it was told of.
    pub output: u32,
}

#[derive(Debug)]
pub struct Passage {
    pub request: RequestId,
    attempt: Attempt,
    prompt: Option<TokenIds>,
    strands: Vec<Strand>,
    scores: Scores,
    /// Prompt tokens that the first engine's cache held.
    cached: Option<u32>,
    /// The one run of this attempt that is listened to.
    lock: Option<RunId>,
    strays: Vec<RunId>,
    holders: Holders,
    /// Router or engine has taken the request over.
    in_custody: bool,
    over: bool,
    trouble: Option<Trouble>,
    /// Nobody here watches over these.
    unwatched: Vec<Unwatched>,
    doubts: Doubts,
    progress: Instant,
    run_heard: Instant,
}

impl Passage {
    /// A request for `n` choices that wants the prompt scored from `score_from` on.
    pub fn new(request: RequestId, n: u32, score_from: Option<u32>, now: Instant) -> Self {
        Self {
            request,
            attempt: Attempt::FIRST,
            prompt: None,
            strands: (0..n).map(|_| Strand::default()).collect(),
            scores: Scores::new(score_from),
            cached: None,
            lock: None,
            strays: Vec::new(),
            holders: Holders::default(),
            in_custody: false,
            over: false,
            trouble: None,
            unwatched: Vec::new(),
            doubts: Doubts::default(),
            progress: now,
            run_heard: now,
        }
    }

    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    pub fn run(&self) -> Option<RunId> {
        self.lock
    }

    pub fn strand(&self, choice: u32) -> Option<&Strand> {
        self.strands.get(choice as usize)
    }

    /// The prompt is understood and router or engine has the request: the client may be told 200.
    pub fn is_open(&self) -> bool {
        self.in_custody && self.prompt.is_some()
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Some output is here.
    pub fn has_begun(&self) -> bool {
        self.strands.iter().any(|strand| !strand.ids().is_empty())
    }

    /// Whether nobody has done anything for it yet: whoever is too busy may send it away.
    pub fn may_be_refused(&self) -> bool {
        self.attempt == Attempt::FIRST && self.lock.is_none() && !self.has_begun()
    }

    /// Output tokens here, over all choices.
    pub fn output_tokens(&self) -> u32 {
        self.strands.iter().map(Strand::output_tokens).sum()
    }

    /// Tokens of the prompt, and those of them that a cache held; what is not known yet is 0.
    pub fn prompt_tokens(&self) -> (u32, u32) {
        let prompt = self.prompt.as_ref().map_or(0, TokenIds::len);
        (u32::try_from(prompt).unwrap_or(u32::MAX), self.cached.unwrap_or(0))
    }

    /// Nothing that comes later counts.
    pub fn end(&mut self) {
        self.over = true;
    }

    pub fn take_trouble(&mut self) -> Option<Trouble> {
        self.trouble.take()
    }

    /// Engines that may have the request without a word, or have died of it; each is told once.
    pub fn take_unwatched(&mut self) -> Vec<Unwatched> {
        std::mem::take(&mut self.unwatched)
    }

    /// Where the run is that an attach could follow.
    pub fn run_at(&self) -> Option<RunAt> {
        let engine = self.holders.engine.as_ref()?.instance.clone();
        self.lock.map(|run| RunAt { engine, run })
    }

    /// What another tokenizer or engine needs to go on; `None` if there is nothing to go on with. `scored`: log
    /// probabilities of the output are wanted.
    pub fn journal(&self, scored: bool) -> Option<Journal> {
        let prompt = self.prompt.clone()?;
        let choices = (0..).zip(&self.strands).filter(|(_, strand)| !strand.ended());
        let choices = choices.map(|(index, strand)| strand.journal(index, scored)).collect();
        Some(Journal { prompt, choices })
    }

    /// Begins the next attempt: what the last one may still say is dropped.
    pub fn next_attempt(&mut self, now: Instant) {
        self.attempt = self.attempt.next();
        self.lock = None;
        self.strays.clear();
        self.holders = Holders::default();
        self.in_custody = self.is_open();
        self.trouble = None;
        self.doubts = Doubts::default();
        self.progress = now;
        if let Some(prompt) = self.prompt.as_ref().filter(|_| !self.scores.are_done()) {
            let _ = self.scores.begin(prompt);
        }
    }

    /// A tokenizer was asked to take over this run's frames.
    pub fn mend(&mut self, now: Instant) {
        self.doubts.mend(now);
        self.trouble = None;
        self.holders.follower = None;
        if let Some(tokenizer) = &mut self.holders.tokenizer {
            tokenizer.give_time(now);
        }
    }

    /// An attach is under way and nothing has come of it yet.
    pub fn is_mending(&self) -> bool {
        self.doubts.is_mending()
    }

    /// A tokenizer has accepted the request.
    pub fn handed_to(&mut self, tokenizer: &InstanceId, now: Instant) {
        self.holders.set(Role::Tokenizer, tokenizer, now);
        self.holders.follower = Some(Follower::new(tokenizer));
        self.doubts.mend_anew(now);
    }

    /// Takes a frame in. `from` and `role` name its sender.
    pub fn frame(&mut self, from: &InstanceId, role: Role, frame: Frame<TextDelta>, now: Instant) -> Effect {
        if self.over || frame.attempt != self.attempt {
            return Effect::Nothing;
        }
        if let Some(stray) = self.listen(frame.run, now) {
            return stray;
        }
        self.note(from, role, frame.run.is_some(), now);
        match frame.body {
            Body::Accepted { instance, role, prefill } => {
                self.in_custody |= matches!(role, Role::Router | Role::Decode);
                self.holders.set(role, &instance, now);
                self.may_be_aboard(Role::Prefill, prefill);
                Effect::Nothing
            }
            Body::Unanswered { engine, prefill } => {
                self.may_be_aboard(Role::Decode, Some(engine));
                self.may_be_aboard(Role::Prefill, prefill);
                Effect::Nothing
            }
            Body::Rendered { prompt } => {
                if self.prompt.is_some() {
                    return Effect::Nothing;
                }
                let scored = self.scores.begin(&prompt);
                self.prompt = Some(prompt);
                self.scored(scored)
            }
            Body::Started { cached_tokens, .. } => {
                self.cached.get_or_insert(cached_tokens);
                self.progress = now;
                Effect::Nothing
            }
            Body::Prompt { first, tokens } => {
                let scored = self.scores.take(first, tokens, self.prompt.as_ref());
                self.scored(scored)
            }
            Body::Delta(delta) => self.delta(delta, now),
            Body::Closed { usage } => self.closed(usage),
            // What an engine has goes on, though a router gives it up, or a tokenizer that heard of no run.
            Body::Failed(fault) => match role {
                Role::Router if self.lock.is_some() => Effect::Nothing,
                Role::Tokenizer if frame.run.is_none() && self.lock.is_some() && !self.is_mending() => {
                    self.raise(Trouble::Lost)
                }
                _ => self.raise(Trouble::Failed(fault)),
            },
        }
    }

    fn may_be_aboard(&mut self, role: Role, engine: Option<InstanceId>) {
        let output = self.output_tokens();
        self.unwatched.extend(engine.map(|instance| Unwatched { role, instance, output }));
    }

    /// Takes a heartbeat in.
    pub fn alive(&mut self, from: &InstanceId, role: Role, alive: &Alive, now: Instant) -> Effect {
        if self.over || alive.attempt != self.attempt {
            return Effect::Nothing;
        }
        if let Some(stray) = self.listen(alive.run, now) {
            return stray;
        }
        self.note(from, role, alive.run.is_some(), now);
        if alive.handed_on && alive.run.is_none() && self.holders.find(from).is_some() {
            self.doubts.drift(now);
        }
        if role == Role::Router && self.lock.is_none() && self.holders.router.is_none() {
            // Its word that it has the request went lost.
            self.holders.set(role, from, now);
            self.in_custody = true;
        }
        if role != Role::Tokenizer {
            return Effect::Nothing;
        }
        let heard =
            now.checked_sub(Duration::from_millis(alive.quiet_ms.into())).filter(|_| alive.run.is_some());
        if let Some(heard) = heard {
            self.run_heard = self.run_heard.max(heard);
            if let Some(engine) = &mut self.holders.engine {
                engine.heard = engine.heard.max(heard);
            }
        }
        if self.is_level_with(alive) {
            self.came_in_order();
            heard.into_iter().for_each(|heard| self.doubts.heard(heard));
        }
        match alive.run.filter(|_| self.holders.are_rivalled_by(from)) {
            Some(run) => Effect::Rival(run),
            None => Effect::Nothing,
        }
    }

    /// Whether the output has come as far here as at the sender.
    fn is_level_with(&self, alive: &Alive) -> bool {
        let lags = |(choice, at): &(u32, u32)| self.strand(*choice).is_some_and(|s| s.lags(*at));
        !alive.reached.is_empty() && !alive.reached.iter().any(lags)
    }

    /// The position of the output, or its next piece, shows that nothing is missing. It does not where the end of one of
    /// several choices may be, or what precedes the output: neither moves it.
    fn came_in_order(&mut self) {
        if self.strands.len() == 1 && self.scores.are_done() && self.prompt.is_some() {
            self.doubts.lost_nothing();
        }
    }

    /// A batch from this sender was lost; true if that raises a doubt.
    pub fn lost(&mut self, from: &InstanceId, now: Instant) -> bool {
        let ours = self.holders.tokenizer.as_ref().is_some_and(|holder| holder.instance == *from);
        ours && self.doubts.lose(now)
    }

    /// This process was cut off: nobody is judged by what was not heard, and frames of the request may be lost.
    pub fn was_cut_off(&mut self, now: Instant) {
        self.give_time(now);
        self.doubts.lose(now);
    }

    /// Locks onto the first run; any other is a stray.
    fn listen(&mut self, run: Option<RunId>, now: Instant) -> Option<Effect> {
        let run = run?;
        if self.lock.is_none() {
            self.lock = Some(run);
            self.doubts.drift_no_more();
            self.run_heard = now;
        }
        if self.lock == Some(run) {
            return None;
        }
        if self.strays.contains(&run) || self.strays.len() >= STRAYS {
            return Some(Effect::Nothing);
        }
        self.strays.push(run);
        Some(Effect::Stray(run))
    }

    fn note(&mut self, from: &InstanceId, role: Role, of_run: bool, now: Instant) {
        let first = role == Role::Tokenizer && self.holders.tokenizer.is_none();
        // The tokenizer that brings the locked run's frames is the one to watch.
        if first || (role == Role::Tokenizer && of_run) {
            self.holders.set(role, from, now);
        } else {
            self.holders.note(role, from, now);
        }
        if role == Role::Tokenizer && of_run {
            self.doubts.drift_no_more();
            self.holders.follows(from);
        }
        if of_run {
            self.in_custody = true;
        }
    }

    fn delta(&mut self, delta: TextDelta, now: Instant) -> Effect {
        self.progress = now;
        self.run_heard = now;
        if let Some(engine) = &mut self.holders.engine {
            engine.heard = now;
        }
        if delta.end == Some(End::Cancelled) {
            let fault = Fault::new(FaultCode::Cancelled, "the engine ended the run");
            return self.raise(Trouble::Failed(fault));
        }
        let choice = delta.choice;
        // Engines score a prompt before they put anything out.
        if self.prompt.is_none() || (!self.scores.are_done() && !delta.ids.is_empty()) {
            return self.gap();
        }
        let Some(strand) = self.strands.get_mut(choice as usize) else { return Effect::Nothing };
        match strand.take(delta) {
            Taken::New(piece) => {
                self.doubts.mended();
                self.came_in_order();
                Effect::Piece { choice, piece }
            }
            Taken::Known => Effect::Nothing,
            Taken::Gap => self.gap(),
        }
    }

    fn scored(&mut self, scored: Scored) -> Effect {
        match scored {
            Scored::Gap => self.gap(),
            Scored::NotAll => Effect::Nothing,
            Scored::All(tokens) => Effect::Scored(tokens),
        }
    }

    fn closed(&mut self, usage: Usage) -> Effect {
        let prompt_tokens = self.prompt.as_ref().map_or(0, TokenIds::len);
        if !self.scores.are_done() || self.prompt.is_none() || !self.strands.iter().all(Strand::ended) {
            return self.gap();
        }
        self.over = true;
        Effect::Closed(Usage {
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: self.cached.unwrap_or(usage.cached_tokens),
            output_tokens: self.output_tokens(),
        })
    }

    fn gap(&mut self) -> Effect {
        if self.is_mending() { Effect::Nothing } else { self.raise(Trouble::Lost) }
    }

    /// Keeps the worst that is known until it is taken up.
    fn raise(&mut self, trouble: Trouble) -> Effect {
        match (&self.trouble, &trouble) {
            (Some(_), Trouble::Lost | Trouble::Forgotten) | (Some(Trouble::Dead { .. }), _) => {}
            _ => self.trouble = Some(trouble),
        }
        Effect::Trouble
    }
}

#[cfg(test)]
mod tests;
