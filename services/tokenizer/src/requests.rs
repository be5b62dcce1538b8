//! The requests that this tokenizer holds, as a state machine: frames and controls in, frames and controls out.

mod live;

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use messages::{
    Attempt, Fault, FaultCode, InstanceId, RequestId, Role, RunId,
    control::{Attach, Cancel},
    frame::{Alive, Batch, Body, Frame, TextDelta, TokenDelta},
};

use crate::decode::Pieces;
pub use live::{Engine, Prepared};
use live::{Live, Verdict};

/// How long an attach has to bring what is missing before it is asked for again.
const ATTACH_AGAIN: Duration = Duration::from_millis(400);
/// Silence of a run after which its engine is asked for what may be missing: it speaks of runs that go on each 250 ms,
/// so this one has ended and its end went lost.
const QUIET_AFTER: Duration = Duration::from_millis(800);
/// How long the engine of a run may be silent before the request is dropped: engines say something each 250 ms.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// The same for a request of which no engine was heard yet: routers hold requests.
const UNHEARD_AFTER: Duration = Duration::from_secs(600);
/// How long the terminal frame of a run may follow the end of its last choice before it counts as lost.
const CLOSED_AFTER: Duration = Duration::from_millis(250);
/// A run or choice that nobody wants any more and that is still at work after this long is cancelled again.
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// Ended requests that are remembered, so that what an engine still sends of them is known for what it is.
const REMEMBERED: usize = 4096;

/// What the actor is to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    Say { to: InstanceId, frame: Frame<TextDelta> },
    Cancel { at: Engine, cancel: Cancel },
    Attach { at: Engine, attach: Attach },
}

/// Names one stay of a request here: a later one of the same request is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub request: RequestId,
    number: u64,
}

pub struct Requests {
    me: InstanceId,
    by_request: HashMap<RequestId, Live>,
    tickets: u64,
    ended: Ended<RequestId>,
    /// Runs that are seen to elsewhere, whatever of them still comes here.
    released: Ended<RunId>,
}

impl Requests {
    pub fn new(me: InstanceId) -> Self {
        let (by_request, ended, released) = (HashMap::new(), Ended::default(), Ended::default());
        Self { me, by_request, tickets: 0, ended, released }
    }

    pub fn len(&self) -> usize {
        self.by_request.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_request.is_empty()
    }

    /// Takes a request in, from now on a cancel finds it. `None` if this attempt is here already; a request to take
    /// over a run (`attaches`) replaces whatever is.
    pub fn admit(
        &mut self,
        request: RequestId,
        attempt: Attempt,
        ingress: &InstanceId,
        attaches: bool,
        now: Instant,
    ) -> Option<Ticket> {
        let held = self.by_request.get(&request).map(|live| live.attempt);
        if held.is_some_and(|held| held > attempt || (held == attempt && !attaches)) {
            return None;
        }
        self.tickets += 1;
        self.by_request.insert(request, Live::new(self.tickets, request, attempt, ingress.clone(), now));
        Some(Ticket { request, number: self.tickets })
    }

    /// Whether the stay goes on: neither cancelled, ended nor replaced.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.by_request.get(&ticket.request).is_some_and(|live| live.number == ticket.number)
    }

    /// The stay, if it goes on.
    fn at(by_request: &mut HashMap<RequestId, Live>, ticket: Ticket) -> Option<&mut Live> {
        by_request.get_mut(&ticket.request).filter(|live| live.number == ticket.number)
    }

    /// What ingress asks before it sends a journal elsewhere.
    pub fn knows(&self, request: Option<RequestId>, run: Option<RunId>) -> bool {
        let live = request.and_then(|request| self.by_request.get(&request));
        live.is_some_and(|live| run.is_none_or(|run| live.run().is_none_or(|held| held == run)))
    }

    /// The prompt is encoded and the choices are made: says so, and whether tokens are to be had from an engine.
    pub fn prepared(&mut self, ticket: Ticket, prepared: Prepared, out: &mut Vec<Action>) -> bool {
        let Some(live) = Self::at(&mut self.by_request, ticket) else { return false };
        live.begin(prepared, out);
        if !live.all_ended() {
            live.follow(&self.me, out);
            return true;
        }
        live.close(0, out);
        self.forget(ticket.request);
        false
    }

    /// A router has taken the request.
    pub fn handed_on(&mut self, ticket: Ticket) {
        if let Some(live) = Self::at(&mut self.by_request, ticket) {
            live.handed_on = true;
        }
    }

    /// The request ends with a fault.
    pub fn fail(&mut self, ticket: Ticket, fault: Fault, out: &mut Vec<Action>) {
        if let Some(live) = Self::at(&mut self.by_request, ticket) {
            out.push(live.say(None, Body::Failed(fault)));
            self.forget(ticket.request);
        }
    }

    /// An engine answered an attach, or did not answer.
    pub fn attached(&mut self, attach: &Attach, known: Option<bool>, out: &mut Vec<Action>) {
        let Some(live) = self.by_request.get_mut(&attach.request) else { return };
        if live.run() != Some(attach.run) {
            return;
        }
        match known {
            Some(true) => {}
            Some(false) => {
                let fault = Fault::new(FaultCode::NoInstance, "the engine no longer knows the run");
                out.push(live.say(live.run(), Body::Failed(fault)));
                self.forget(attach.request);
            }
            None => live.unanswered(),
        }
    }

    /// Drops a request; says whether it was here. Who names the run sees to the run: another tokenizer follows it, or
    /// it is cancelled at the engines. It may be one that this stay waits for and has not heard of.
    pub fn cancel(&mut self, cancel: &Cancel) -> bool {
        let meant = self.by_request.get(&cancel.request).is_some_and(|live| {
            live.attempt <= cancel.attempt
                && cancel.choice.is_none()
                && cancel.run.is_none_or(|run| live.may_follow(run))
        });
        if let (Some(run), None) = (cancel.run, cancel.choice) {
            self.released.remember(run);
        }
        if meant {
            self.forget(cancel.request);
        }
        meant
    }

    /// An ingress is gone, and with it whoever wanted these answers.
    pub fn ingress_departed(&mut self, ingress: &InstanceId) -> usize {
        self.drop_where(|live| live.ingress == *ingress)
    }

    /// Takes a batch of an engine in.
    pub fn batch(&mut self, pieces: &Pieces, batch: Batch<TokenDelta>, now: Instant, out: &mut Vec<Action>) {
        let from = Sender { instance: &batch.from, role: batch.role };
        for frame in batch.frames {
            self.frame(pieces, from, frame, now, out);
        }
        for alive in batch.alive {
            self.alive(from, &alive, now, out);
        }
    }

    /// Batches of an engine were lost: what they held must be said again.
    pub fn lost(&mut self, engine: &InstanceId, now: Instant, out: &mut Vec<Action>) {
        for live in self.by_request.values_mut().filter(|live| live.is_at(engine)) {
            live.missing = true;
            live.ask_again(&self.me, now, out);
        }
    }

    /// Batches of all engines may be lost, with them what was asked for again. It is asked for with the next heartbeat, or
    /// once an engine is heard: it may have been cut off as well.
    pub fn was_cut_off(&mut self) {
        for live in self.by_request.values_mut() {
            live.missing = true;
            live.unasked();
        }
    }

    /// Heartbeats by ingress, of requests that had no frame since `silent_since`. What is still missing is asked for
    /// again; a run of which only the terminal frame is missing needs none.
    pub fn beat(
        &mut self,
        silent_since: Instant,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> HashMap<InstanceId, Vec<Alive>> {
        let mut alive: HashMap<InstanceId, Vec<Alive>> = HashMap::new();
        let unclosed = self.by_request.values().filter(|live| live.is_unclosed(now));
        let unclosed: Vec<RequestId> = unclosed.map(|live| live.request).collect();
        for request in unclosed {
            self.by_request[&request].close(0, out);
            self.forget(request);
        }
        self.drop_where(|live| live.is_forsaken(now));
        for live in self.by_request.values_mut() {
            if live.missing || live.is_quiet(now) {
                live.ask_again(&self.me, now, out);
            }
            if live.spoke <= silent_since {
                alive.entry(live.ingress.clone()).or_default().push(live.alive(now));
            }
        }
        alive
    }

    fn frame(
        &mut self,
        pieces: &Pieces,
        from: Sender<'_>,
        frame: Frame<TokenDelta>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let live = self.by_request.get_mut(&frame.request);
        let Some(live) = live.filter(|live| frame.attempt >= live.attempt) else {
            return self.stranger(from, &frame, now, out);
        };
        if !live.is_prepared() || frame.attempt != live.attempt || !live.listens(from, frame.run, now, out) {
            return;
        }
        match live.take(pieces, frame.body, now, out) {
            Verdict::On => {}
            Verdict::Missing => live.ask_again(&self.me, now, out),
            Verdict::Over => self.forget(frame.request),
        }
    }

    fn alive(&mut self, from: Sender<'_>, alive: &Alive, now: Instant, out: &mut Vec<Action>) {
        let live = self.by_request.get_mut(&alive.request);
        let Some(live) = live.filter(|live| alive.attempt >= live.attempt) else {
            if let Some(run) = alive.run {
                self.unwanted(from, whole(alive.request, alive.attempt, run), now, out);
            }
            return;
        };
        if !live.is_prepared() || alive.attempt != live.attempt || !live.listens(from, alive.run, now, out) {
            return;
        }
        if live.lags(&alive.reached) {
            live.missing = true;
            live.ask_again(&self.me, now, out);
        }
    }

    /// A frame of a request that is not here (any more), or of an attempt that another one follows.
    fn stranger(&mut self, from: Sender<'_>, frame: &Frame<TokenDelta>, now: Instant, out: &mut Vec<Action>) {
        let (Body::Delta(delta), Some(run)) = (&frame.body, frame.run) else { return };
        if self.ended.contains(frame.request) && !self.released.contains(run) {
            metrics::counter!("stator_tokenizer_stop_overrun_tokens_total").increment(delta.ids.len() as u64);
        }
        self.unwanted(from, whole(frame.request, frame.attempt, run), now, out);
    }

    /// A run is at work for nobody here. Unless it is seen to elsewhere, it is told to stop if it goes on for a while: who
    /// ended it has told it so, and of a process that stood still another one may long have taken it over.
    fn unwanted(&mut self, from: Sender<'_>, cancel: Cancel, now: Instant, out: &mut Vec<Action>) {
        let is_released = cancel.run.is_some_and(|run| self.released.contains(run));
        if !is_released && self.ended.goes_on(cancel.request, now) {
            out.push(Action::Cancel { at: from.engine(), cancel });
        }
    }

    /// Drops requests that are not spoken of any more; says how many.
    fn drop_where(&mut self, is_over: impl Fn(&Live) -> bool) -> usize {
        let over: Vec<RequestId> =
            self.by_request.values().filter(|live| is_over(live)).map(|live| live.request).collect();
        over.iter().for_each(|request| self.forget(*request));
        over.len()
    }

    fn forget(&mut self, request: RequestId) {
        self.by_request.remove(&request);
        self.ended.remember(request);
    }
}

/// Who sent a batch.
#[derive(Debug, Clone, Copy)]
struct Sender<'a> {
    instance: &'a InstanceId,
    role: Role,
}

impl Sender<'_> {
    fn engine(self) -> Engine {
        Engine { instance: self.instance.clone(), role: self.role }
    }
}

fn whole(request: RequestId, attempt: Attempt, run: RunId) -> Cancel {
    Cancel { request, attempt, run: Some(run), choice: None }
}

/// The last that ended, each with the moment since which it is heard of all the same.
#[derive(Debug)]
struct Ended<K> {
    order: VecDeque<K>,
    known: HashMap<K, Option<Instant>>,
}

impl<K> Default for Ended<K> {
    fn default() -> Self {
        Self { order: VecDeque::new(), known: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Ended<K> {
    fn remember(&mut self, what: K) {
        if self.known.insert(what, None).is_none() {
            self.order.push_back(what);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn contains(&self, what: K) -> bool {
        self.known.contains_key(&what)
    }

    /// Notes that it is at work; true if it was so for a while.
    fn goes_on(&mut self, what: K, now: Instant) -> bool {
        if !self.contains(what) {
            self.remember(what);
        }
        let Some(heard) = self.known.get_mut(&what) else { return false };
        let since = *heard.get_or_insert(now);
        if now.saturating_duration_since(since) < CANCEL_AGAIN {
            return false;
        }
        *heard = Some(now);
        true
    }
}

#[cfg(test)]
mod tests;
