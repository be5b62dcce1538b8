//! Requests that engines have died under. An engine has one of them aboard at a time, beside others: if it dies again,
//! it is known of whom.

use std::time::{Duration, Instant};

use messages::{InstanceId, load::Load};

use super::State;
use crate::fleet::Member;

/// A report made this long after the dispatch includes it, whether or not it names it.
const INCLUDED_AFTER: Duration = Duration::from_secs(1);

/// Where such a request went, under which number, and when.
#[derive(Debug)]
pub(super) struct Sent {
    engine: InstanceId,
    number: u64,
    at: Instant,
}

impl State {
    /// Whether such a request, which may be bound to one engine, has to wait until engines have no other aboard.
    pub fn poison_waits(&self, pin: Option<&InstanceId>) -> bool {
        let mut engines = self.decode.members().iter();
        match pin {
            Some(pin) => self.decode.member(pin).is_some_and(|member| self.has_poison(member)),
            None => !self.decode.is_empty() && engines.all(|member| self.has_poison(member)),
        }
    }

    /// Whether one is aboard, sent there by this router or, as the engine reports, by another.
    pub(super) fn has_poison(&self, member: &Member) -> bool {
        self.poison.iter().any(|sent| sent.engine == *member.instance())
            || member.load().reported().is_some_and(|load| load.maybe_poison)
    }

    pub(super) fn poison_sent(&mut self, engine: &InstanceId, number: u64, at: Instant) {
        self.poison.push(Sent { engine: engine.clone(), number, at });
    }

    pub(super) fn poison_refused(&mut self, number: u64) {
        self.poison.retain(|sent| sent.number != number);
    }

    /// The place on an engine is free once a report that includes the dispatch says so.
    pub fn poison_heard(&mut self, load: &Load, me: &InstanceId, now: Instant) {
        let seen = load.seen.iter().find(|(router, _)| router == me).map_or(0, |(_, number)| *number);
        self.poison.retain(|sent| {
            let included = sent.number <= seen || now.duration_since(sent.at) >= INCLUDED_AFTER;
            sent.engine != load.instance || load.maybe_poison || !included
        });
    }

    /// Engines may be gone, perhaps because of it.
    pub fn poison_gone(&mut self) {
        let decode = &self.decode;
        self.poison.retain(|sent| decode.member(&sent.engine).is_some());
    }
}
