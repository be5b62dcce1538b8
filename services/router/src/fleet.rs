//! The engines of one role that serve one model: who they are, what they carry, and what their caches hold.

mod drift;
mod guesses;
mod member;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{
    InstanceId,
    kv::{KvChange, KvEvents, KvSnapshot},
    lease::Lease,
    load::Load,
};

use crate::{
    follow::Heard,
    index::{Index, Matches},
    policy::Candidate,
};
use guesses::Guesses;
pub use member::{Member, hash_of};

/// Shards of the index swept in one go: a millisecond of work where shards are large.
const SWEEP_AT_ONCE: usize = 16;

#[derive(Debug, Default)]
pub struct Fleet {
    members: Vec<Member>,
    places: HashMap<InstanceId, usize>,
    index: Index,
    matches: Matches,
    /// Without events.
    guesses: Option<Guesses>,
}

impl Fleet {
    /// `guess_ttl`: knowledge of caches is guessed from dispatches and holds this long; else it comes from events.
    pub fn new(guess_ttl: Option<Duration>) -> Self {
        Self { guesses: guess_ttl.map(Guesses::new), ..Self::default() }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, instance: &InstanceId) -> Option<&Member> {
        self.places.get(instance).map(|place| &self.members[*place])
    }

    pub fn member_mut(&mut self, instance: &InstanceId) -> Option<&mut Member> {
        self.places.get(instance).map(|place| &mut self.members[*place])
    }

    /// Whether caches are followed by events.
    pub fn follows(&self) -> bool {
        self.guesses.is_none()
    }

    /// Takes in who is alive: forgets all others at once. True if that changed anything.
    pub fn sync(&mut self, live: &[Arc<Lease>]) -> bool {
        let alive: HashSet<&InstanceId> = live.iter().map(|lease| &lease.instance).collect();
        let before = self.members.len();
        let (index, guesses) = (&mut self.index, &mut self.guesses);
        self.members.retain(|member| {
            let stays = alive.contains(member.instance());
            if !stays {
                index.dismiss(member.worker);
                guesses.iter_mut().for_each(|guesses| guesses.forget(member.worker));
            }
            stays
        });
        let kept = self.members.len();
        for lease in live.iter().filter(|lease| !self.places.contains_key(&lease.instance)) {
            match self.index.enlist() {
                Some(worker) => self.members.push(Member::new(lease.clone(), worker)),
                None => {
                    tracing::error!(instance = %lease.instance, "not routed to: the index has no number left")
                }
            }
        }
        let changed = before != kept || kept != self.members.len();
        if changed {
            let places = self.members.iter().enumerate();
            self.places = places.map(|(place, member)| (member.instance().clone(), place)).collect();
        }
        changed
    }

    /// False if the report is of nobody here or was overtaken.
    pub fn heard_load(&mut self, load: Load, me: &InstanceId, now: Instant) -> bool {
        let follows = self.follows();
        let Some(member) = self.member_mut(&load.instance) else { return false };
        if let (true, Some((epoch, next))) = (follows, load.kv) {
            member.follower.told(epoch, next);
        }
        member.load.heard(load, me, now)
    }

    /// Applies changes of a cache; says how many blocks they named.
    pub fn heard_kv(&mut self, events: KvEvents) -> usize {
        let Some(place) = self.places.get(&events.instance).copied() else { return 0 };
        match self.members[place].follower.hear(events) {
            Heard::Apply(events) => self.apply(place, &events),
            Heard::Known | Heard::Waits => 0,
        }
    }

    /// Puts a snapshot in the place of what was known.
    pub fn take_snapshot(&mut self, snapshot: &KvSnapshot) {
        let Some(place) = self.places.get(&snapshot.instance).copied() else { return };
        self.clear(place);
        let member = &mut self.members[place];
        self.index.add_all(member.worker, snapshot.blocks.iter());
        for events in member.follower.resume(snapshot.epoch, snapshot.next) {
            self.apply(place, &events);
        }
    }

    fn apply(&mut self, place: usize, events: &KvEvents) -> usize {
        let mut named = 0;
        for change in &events.changes {
            let worker = self.members[place].worker;
            match change {
                KvChange::Stored(ids) => {
                    named += ids.len();
                    self.index.add_all(worker, ids.iter());
                }
                KvChange::Removed(ids) => {
                    named += ids.len();
                    self.index.remove_all(worker, ids.iter());
                }
                KvChange::Cleared => self.clear(place),
            }
        }
        named
    }

    fn clear(&mut self, place: usize) {
        let member = &mut self.members[place];
        member.worker = self.index.renew(member.worker);
    }

    /// Each member as a policy sees it, in the order of [`Self::members`].
    pub fn candidates(&mut self, chain: &[u64], session: Option<u64>, out: &mut Vec<Candidate>) {
        self.index.matches(chain, &mut self.matches);
        out.clear();
        out.extend(self.members.iter().map(|member| {
            let burden = member.load.burden();
            Candidate {
                overlap_blocks: self.matches.depth(member.worker),
                prefill_tokens: burden.prefill_tokens,
                used_blocks: burden.blocks,
                requests: burden.requests,
                session_rank: session.map_or(0, |session| member.rank(session)),
            }
        }));
    }

    /// Notes that this prompt went there: without events that is all that is known of its cache.
    pub fn dispatched(&mut self, place: usize, chain: &[u64], now: Instant) {
        if let Some(guesses) = &mut self.guesses {
            guesses.note(self.members[place].worker, chain, now, &mut self.index);
        }
    }

    /// Slow duties: a part of the sweep, and guesses that are too old.
    pub fn upkeep(&mut self, now: Instant) {
        for _ in 0..SWEEP_AT_ONCE {
            self.index.sweep();
        }
        if let Some(guesses) = &mut self.guesses {
            guesses.expire(now, &mut self.index);
        }
    }

    /// Members whose cache must be asked for and is not being asked for; they are from now on.
    pub fn ask_for(&mut self) -> Vec<Arc<Lease>> {
        if !self.follows() {
            return Vec::new();
        }
        let lost = self.members.iter_mut().filter(|member| member.follower.is_lost() && !member.asked);
        lost.map(|member| {
            member.asked = true;
            member.lease.clone()
        })
        .collect()
    }

    pub fn index(&self) -> &Index {
        &self.index
    }
}

#[cfg(test)]
mod tests;
