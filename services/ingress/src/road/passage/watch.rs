//! Watching over the holders of a request: when to ask one, and what its answer means.

use std::time::{Duration, Instant};

use messages::{Fault, FaultCode, InstanceId, RequestId, Role, RunId, control::Pong};

use super::{Passage, Trouble};
use crate::road::holders::Holders;

/// How long a tokenizer may answer pings and yet bring nothing through the inbox.
const DEAF: Duration = Duration::from_millis(1500);
/// How long a run may make no progress before its engine is asked how old the running step is.
const STALL: Duration = Duration::from_secs(2);
/// How much longer than announced a step may take before its engine counts as hung.
const STEP_MARGIN: Duration = Duration::from_secs(2);
/// How long a request may go without anyone known to hold it, or its run without a known engine or tokenizer.
const ORPHAN: Duration = Duration::from_secs(3);
/// How long a run may be out of its tokenizer's hands without a sign of life there, which engines give each 250 ms: it may
/// have ended meanwhile, unheard.
const ADRIFT: Duration = Duration::from_secs(1);
/// The same of a request without a run. Routers that hold it say so each 250 ms, but for while they reconnect; and it would lose
/// its place in their queue.
const ADRIFT_UNHELD: Duration = Duration::from_secs(2);
/// No check is further away than this.
const LOOK_AGAIN: Duration = Duration::from_millis(600);

/// What to do now.
#[derive(Debug, PartialEq)]
pub enum Check {
    /// Nothing before then.
    At(Instant),
    /// Ask these holders.
    Ask(Vec<Question>),
    /// See [`Passage::take_trouble`].
    Trouble,
}

/// A ping to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub role: Role,
    pub instance: InstanceId,
    pub request: RequestId,
    pub run: Option<RunId>,
    pub asked: Instant,
}

/// What became of a ping.
#[derive(Debug)]
pub enum Answer {
    Pong(Pong),
    /// Nobody listens any more, or no answer came in time.
    Dead,
    /// This process could not ask.
    Unknown,
}

impl Passage {
    /// Looks at the clock.
    pub fn check(&mut self, now: Instant) -> Check {
        if self.over {
            return Check::At(now + LOOK_AGAIN);
        }
        if self.trouble.is_some() {
            return Check::Trouble;
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.doubts.due(self.lock.is_some())) || self.is_deaf(now) {
            self.doubts.settle();
            self.raise(Trouble::Lost);
            return Check::Trouble;
        }
        if due(self.adrift_until()) {
            self.doubts.drift_no_more();
            self.raise(if self.run_at().is_some() { Trouble::Lost } else { Trouble::Forgotten });
            return Check::Trouble;
        }
        let Holders { tokenizer, router, engine, .. } = &self.holders;
        let orphaned_since = match self.lock {
            Some(_) => (engine.is_none() || tokenizer.is_none()).then_some(self.run_heard),
            None => (tokenizer.is_none() && router.is_none()).then_some(self.progress),
        };
        if due(orphaned_since.map(|since| since + ORPHAN)) {
            self.raise(if self.run_at().is_some() { Trouble::Lost } else { Trouble::Forgotten });
            return Check::Trouble;
        }
        let questions = self.questions(now);
        if !questions.is_empty() {
            return Check::Ask(questions);
        }
        let dues = [
            self.holders.tokenizer.as_ref().and_then(|holder| holder.due()),
            self.doubts.due(self.lock.is_some()),
            self.adrift_until(),
        ];
        let soonest = dues.into_iter().flatten().min().unwrap_or(now + LOOK_AGAIN);
        Check::At(soonest.clamp(now + Duration::from_millis(10), now + LOOK_AGAIN))
    }

    /// Frames no longer reach us though their sender answers.
    fn is_deaf(&self, now: Instant) -> bool {
        self.lock.is_some()
            && self
                .holders
                .tokenizer
                .as_ref()
                .is_some_and(|holder| holder.heard > holder.spoke && now.duration_since(holder.spoke) >= DEAF)
    }

    /// How long nobody may follow its run, or no router have it. An engine that is being asked may be dead: that comes first.
    fn adrift_until(&self) -> Option<Instant> {
        let Holders { router, engine, .. } = &self.holders;
        match self.lock {
            Some(_) if engine.as_ref().is_some_and(|engine| engine.asked.is_some()) => None,
            Some(_) => self.doubts.adrift_until(ADRIFT),
            None if router.is_some() => None,
            None => self.doubts.adrift_until(ADRIFT_UNHELD),
        }
    }

    fn questions(&mut self, now: Instant) -> Vec<Question> {
        let locked = self.lock;
        let stalled = locked.is_some() && now.duration_since(self.progress) >= STALL;
        let mut questions = Vec::new();
        for role in [Role::Tokenizer, Role::Router, Role::Decode] {
            if role == Role::Router && locked.is_some() {
                continue;
            }
            let Some(Some(holder)) = self.holders.slot(role) else { continue };
            let silent = holder.due().is_some_and(|due| due <= now);
            let doubtful = role == Role::Decode && stalled && holder.asked.is_none();
            if !silent && !doubtful {
                continue;
            }
            holder.asked = Some(now);
            let run = if role == Role::Router { None } else { locked };
            let instance = holder.instance.clone();
            questions.push(Question { role, instance, request: self.request, run, asked: now });
        }
        if stalled {
            self.progress = now;
        }
        questions
    }

    /// Takes the answer to a question; true if there is trouble.
    pub fn answered(&mut self, question: &Question, answer: &Answer, now: Instant) -> bool {
        let lock = self.lock;
        let Some(Some(holder)) = self.holders.slot(question.role) else { return false };
        if self.over || holder.instance != question.instance || holder.asked != Some(question.asked) {
            return false;
        }
        holder.asked = None;
        let silent_since = holder.spoke <= question.asked;
        match answer {
            Answer::Unknown => {
                holder.note(now);
                return false;
            }
            // It has spoken since: the ping or its answer went lost.
            Answer::Dead if holder.heard > question.asked => return false,
            Answer::Dead => {
                let (role, instance) = (question.role, question.instance.clone());
                self.raise(Trouble::Dead { role, instance });
                return true;
            }
            Answer::Pong(pong) => {
                holder.heard = now;
                let age = Duration::from_millis(pong.pulse.age_ms.into());
                let bound = Duration::from_millis(pong.pulse.bound_ms.into());
                if question.role == Role::Decode && age > bound + STEP_MARGIN {
                    let (role, instance) = (question.role, question.instance.clone());
                    self.raise(Trouble::Dead { role, instance });
                    return true;
                }
                if pong.knows_run || !silent_since || lock != question.run {
                    return false;
                }
            }
        }
        // It lives and does not know the request, and nothing has happened since it was asked.
        // What a tokenizer forgot of a run, its engine can say again.
        let replayable = question.role == Role::Tokenizer && lock.is_some();
        self.raise(if replayable { Trouble::Lost } else { Trouble::Forgotten });
        true
    }

    /// An instance gave no sign of life since `asked`; true if that is trouble for this request, which may have heard of
    /// it.
    pub fn gave_no_sign(&mut self, instance: &InstanceId, asked: Instant) -> bool {
        let heard = self.holders.find(instance).is_some_and(|(_, holder)| holder.heard > asked);
        !heard && self.departed(instance, false)
    }

    /// An instance is gone; true if that is trouble for this request. `orderly`: it had said that it would go, and an
    /// engine that leaves is no engine that died.
    pub fn departed(&mut self, instance: &InstanceId, orderly: bool) -> bool {
        let locked = self.lock.is_some();
        let Some((role, _)) = self.holders.find(instance) else { return false };
        if self.over || (role == Role::Router && locked) {
            return false;
        }
        self.raise(if orderly && role == Role::Decode {
            Trouble::Failed(Fault::new(FaultCode::Draining, "the engine went away"))
        } else {
            Trouble::Dead { role, instance: instance.clone() }
        });
        true
    }

    /// This process could not hear: nobody is judged by that silence.
    pub fn give_time(&mut self, now: Instant) {
        self.holders.give_time(now);
        self.progress = now;
        self.run_heard = now;
        self.doubts.give_time(now);
    }
}
