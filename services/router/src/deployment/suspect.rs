use std::time::{Duration, Instant};

use messages::{InstanceId, RequestId, load::Load};

use super::State;
use crate::fleet::Member;

/// A suspect of which nothing is heard holds up the next no longer than this.
const SUSPECT_AT_MOST: Duration = Duration::from_secs(120);
/// A report made this long after the dispatch includes it, whether or not it names it.
const INCLUDED_AFTER: Duration = Duration::from_secs(1);

/// The request of this pool that engines have died under and that runs alone now.
#[derive(Debug)]
pub(super) struct Suspect {
    request: RequestId,
    since: Instant,
    sent: Option<Sent>,
}

/// Where it went, under which number, and when.
#[derive(Debug)]
struct Sent {
    engine: InstanceId,
    number: u64,
    at: Instant,
}

impl State {
    /// Takes the pool's one place for such a request; false while another has it, here or by another router.
    pub fn take_suspect(&mut self, request: RequestId, now: Instant) -> bool {
        let taken = self.suspect.as_ref().is_some_and(|suspect| {
            // Who comes again has lost its engine.
            suspect.request != request && now.duration_since(suspect.since) < SUSPECT_AT_MOST
        });
        let elsewhere = || {
            let reports = self.decode.members().iter().filter_map(|member| member.load().reported());
            reports.into_iter().any(|load| load.alone)
        };
        if taken || elsewhere() {
            return false;
        }
        self.suspect = Some(Suspect { request, since: now, sent: None });
        true
    }

    /// It was accepted there, under this number.
    pub fn suspect_sent(&mut self, request: RequestId, engine: &InstanceId, number: u64, at: Instant) {
        if let Some(suspect) = self.suspect.as_mut().filter(|suspect| suspect.request == request) {
            suspect.sent = Some(Sent { engine: engine.clone(), number, at });
        }
        self.suspects_engine_gone();
    }

    /// Whether a request that engines have died under is aboard, as far as is known.
    pub(super) fn has_suspect(&self, member: &Member) -> bool {
        let sent = self.suspect.as_ref().and_then(|suspect| suspect.sent.as_ref());
        sent.is_some_and(|sent| sent.engine == *member.instance())
            || member.load().reported().is_some_and(|load| load.alone)
    }

    /// It will not be sent.
    pub fn suspect_dropped(&mut self, request: RequestId) {
        if self.suspect.as_ref().is_some_and(|suspect| suspect.request == request && suspect.sent.is_none()) {
            self.suspect = None;
        }
    }

    /// The place is free once a report that includes the dispatch says that nothing runs alone.
    pub fn suspect_heard(&mut self, load: &Load, me: &InstanceId, now: Instant) {
        let seen = load.seen.iter().find(|(router, _)| router == me).map_or(0, |(_, number)| *number);
        let over = |sent: &Sent| {
            let included = sent.number <= seen || now.duration_since(sent.at) >= INCLUDED_AFTER;
            sent.engine == load.instance && included && !load.alone
        };
        if self.suspect.as_ref().and_then(|suspect| suspect.sent.as_ref()).is_some_and(over) {
            self.suspect = None;
        }
    }

    /// The engine is gone, perhaps because of it.
    pub fn suspects_engine_gone(&mut self) {
        let sent = self.suspect.as_ref().and_then(|suspect| suspect.sent.as_ref());
        if sent.is_some_and(|sent| self.decode.member(&sent.engine).is_none()) {
            self.suspect = None;
        }
    }
}
