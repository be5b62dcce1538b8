//! The log of each run: what it put out, where its frames go, and how to say it all again.

mod log;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use messages::{
    Attempt, Fault, FaultCode, InstanceId, RequestId, RunId,
    control::{Attach, Cancel},
    frame::{Alive, Body, Frame, TokenDelta, Usage},
};
use scheduler::{EndReason, Event, RunKey};

use crate::device::Dispatch;
pub use log::RunLog;

/// How long the log of an ended run is kept for an attach.
pub const KEEP_LOG: Duration = Duration::from_secs(30);

/// A run that has put out so many tokens does not kill its engine by what killed others: it goes on where it stopped
/// there. Ingress, which may not have seen the last of them, asks for half as many.
const HARMLESS: usize = 32;

/// A frame and the inbox it goes to.
pub type Addressed = (InstanceId, Frame<TokenDelta>);

/// All runs of an engine, live or lately ended.
#[derive(Debug, Default)]
pub struct Runs {
    by_run: HashMap<RunId, RunLog>,
    by_request: HashMap<RequestId, Vec<RunId>>,
    live: usize,
}

impl Runs {
    pub fn insert(&mut self, log: RunLog) {
        self.by_request.entry(log.request).or_default().push(log.run);
        if self.by_run.insert(log.run, log).is_none() {
            self.live += 1;
        }
    }

    /// Runs without a terminal.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Whether a run is live that engines have died under and that has not got far here yet.
    pub fn has_poison(&self) -> bool {
        self.by_run.values().any(|log| log.maybe_poison && log.ended.is_none() && log.computed() < HARMLESS)
    }

    pub fn knows(&self, run: RunId) -> bool {
        self.by_run.contains_key(&run)
    }

    /// Takes the events of a step and appends the frames they make, those of one choice joined. Returns which
    /// dispatches began, each with the tokens of its prompt that the cache of this engine held.
    pub fn step(&mut self, events: Vec<Event>, frames: &mut Vec<Addressed>) -> Vec<(Dispatch, u32)> {
        let mut began = Vec::new();
        for event in events {
            let run = RunId(run_of(&event).0);
            let Some(log) = self.by_run.get_mut(&run) else { continue };
            if log.ended.is_some() {
                continue;
            }
            match event {
                Event::Started { cached_tokens, queue_time, .. } => {
                    let here = cached_tokens.min(log.cached_here);
                    began.extend(log.dispatch.take().map(|dispatch| (dispatch, here)));
                    frames.push(log.started(log.cached(cached_tokens), queue_time));
                }
                Event::PromptScored { first, tokens, .. } => log.scored(first, &tokens, frames),
                Event::Token { choice, position, token, logprob, top, .. } => {
                    log.token(choice, position, token, logprob, &top, frames);
                }
                Event::Ended { choice, reason, .. } => match log::end_of(reason) {
                    Some(end) => log.end(choice, end, frames),
                    None => log.fault = Some(fault_of(reason)),
                },
                Event::BlocksComputed { .. } => {}
                Event::RunClosed { usage, .. } => {
                    frames.push(log.close(usage));
                    self.live -= 1;
                }
            }
        }
        began
    }

    /// A run waits for others to compute its prompt but for these tokens, which were cached here.
    pub fn waits(&mut self, run: RunId, cached_tokens: u32) {
        if let Some(log) = self.by_run.get_mut(&run) {
            log.cached_here = cached_tokens;
        }
    }

    /// The engine that computes a run's prompt had these of its tokens in its cache.
    pub fn cached_elsewhere(&mut self, run: RunId, tokens: u32) {
        if let Some(log) = self.by_run.get_mut(&run) {
            log.cached_elsewhere = tokens;
        }
    }

    /// Ends a run that never began.
    pub fn refuse(&mut self, run: RunId, fault: Fault) -> Option<Addressed> {
        let log = self.by_run.get_mut(&run).filter(|log| log.ended.is_none())?;
        log.fault = Some(fault);
        self.live -= 1;
        Some(log.close(Usage::default()))
    }

    /// Sends a run's frames elsewhere from now on and says again what lies behind the given positions. `None`: the
    /// run is not known here.
    pub fn attach(&mut self, attach: &Attach) -> Option<Vec<Addressed>> {
        let log = self.by_run.get_mut(&attach.run).filter(|log| log.request == attach.request)?;
        log.inbox = attach.inbox.clone();
        Some(log.replay(&attach.from))
    }

    /// Live runs that a cancel means.
    pub fn meant_by(&self, cancel: &Cancel) -> Vec<RunId> {
        let runs = self.by_request.get(&cancel.request).map(Vec::as_slice).unwrap_or_default();
        let meant = |log: &&RunLog| {
            log.ended.is_none()
                && log.attempt <= cancel.attempt
                && cancel.run.is_none_or(|run| run == log.run)
        };
        runs.iter().filter_map(|run| self.by_run.get(run)).filter(meant).map(|log| log.run).collect()
    }

    pub fn live_runs(&self) -> Vec<RunId> {
        self.by_run.values().filter(|log| log.ended.is_none()).map(|log| log.run).collect()
    }

    /// Live runs that came through this ingress.
    pub fn of_ingress(&self, ingress: &InstanceId) -> Vec<RunId> {
        let of = |log: &&RunLog| log.ended.is_none() && log.ingress == *ingress;
        self.by_run.values().filter(of).map(|log| log.run).collect()
    }

    /// Live runs that had no frame lately, by inbox.
    pub fn silent(&mut self, since: Instant) -> HashMap<InstanceId, Vec<Alive>> {
        let mut alive: HashMap<InstanceId, Vec<Alive>> = HashMap::new();
        for log in self.by_run.values().filter(|log| log.ended.is_none() && log.last_frame < since) {
            alive.entry(log.inbox.clone()).or_default().push(log.alive());
        }
        alive
    }

    /// Drops logs that ended long ago.
    pub fn forget_old(&mut self, now: Instant) {
        let old = |log: &RunLog| log.ended.is_some_and(|ended| now.duration_since(ended) > KEEP_LOG);
        let gone: HashSet<RunId> = self.by_run.values().filter(|log| old(log)).map(|log| log.run).collect();
        for run in &gone {
            let Some(log) = self.by_run.remove(run) else { continue };
            if let Some(runs) = self.by_request.get_mut(&log.request) {
                runs.retain(|other| other != run);
                if runs.is_empty() {
                    self.by_request.remove(&log.request);
                }
            }
        }
    }

    /// Forgets everything: this engine was cut off and may say nothing of these runs any more.
    pub fn fence(&mut self) {
        *self = Self::default();
    }
}

fn run_of(event: &Event) -> RunKey {
    match event {
        Event::Started { run, .. }
        | Event::PromptScored { run, .. }
        | Event::Token { run, .. }
        | Event::BlocksComputed { run, .. }
        | Event::Ended { run, .. }
        | Event::RunClosed { run, .. } => *run,
    }
}

fn fault_of(reason: EndReason) -> Fault {
    match reason {
        EndReason::DeadlineExceeded => {
            Fault::new(FaultCode::DeadlineExceeded, "the deadline of the request has passed")
        }
        EndReason::NotFinite => Fault::new(
            FaultCode::EngineFault,
            "logits are not finite: weights are broken, or numbers outgrew their type",
        ),
        _ => Fault::new(FaultCode::EngineFault, "the engine could not compute a step of this request"),
    }
}

#[cfg(test)]
mod tests;
