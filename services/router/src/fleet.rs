//! The engines of one role that serve one model: who they are, what they carry, and what their caches hold.

mod drift;
mod guesses;
mod member;
mod pages;

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
    chain::{Chain, blocks_of},
    decisions::Roster,
    follow::Heard,
    index::{Index, Matches, Worker},
    load::{Burden, LoadView, Work},
    policy::Candidate,
};
use guesses::Guesses;
pub use member::{Member, hash_of};
use pages::Pages;

/// Shards of the index swept in one go: a millisecond of work where shards are large.
const SWEEP_AT_ONCE: usize = 16;

#[derive(Debug, Default)]
pub struct Fleet {
    members: Vec<Member>,
    /// What every decision reads of each member, in their order and by itself: members are large.
    sights: Vec<Sight>,
    places: HashMap<InstanceId, usize>,
    roster: Roster,
    index: Index,
    pages: Pages,
    /// In blocks of the smallest size.
    matches: Matches,
    /// Without events.
    guesses: Option<Guesses>,
}

/// A member at a glance.
#[derive(Debug, Clone, Copy)]
struct Sight {
    worker: Worker,
    /// In blocks of the smallest size.
    burden: Burden,
}

impl Fleet {
    /// `guess_ttl`: knowledge of caches is guessed from dispatches and holds this long; else it comes from events.
    pub fn new(guess_ttl: Option<Duration>) -> Self {
        Self { guesses: guess_ttl.map(Guesses::new), ..Self::default() }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Their leases, in the same order.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a member says that computing a prompt token takes; 0 if it has not said.
    pub fn token_ns(&self, place: usize) -> u32 {
        self.members[place].load().reported().map_or(0, |load| load.prefill_token_ns)
    }

    /// Where in [`Self::members`] an instance is.
    pub fn place(&self, instance: &InstanceId) -> Option<usize> {
        self.places.get(instance).copied()
    }

    pub fn member(&self, instance: &InstanceId) -> Option<&Member> {
        self.place(instance).map(|place| &self.members[place])
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
        let stays: Vec<bool> = self.members.iter().map(|member| alive.contains(member.instance())).collect();
        for (sight, _) in self.sights.iter().zip(&stays).filter(|(_, stays)| !**stays) {
            self.index.dismiss(sight.worker);
            self.guesses.iter_mut().for_each(|guesses| guesses.forget(sight.worker));
        }
        keep(&mut self.members, &stays);
        keep(&mut self.sights, &stays);
        let kept = self.members.len();
        for lease in live.iter().filter(|lease| !self.places.contains_key(&lease.instance)) {
            match self.index.enlist() {
                Some(worker) => {
                    self.members.push(Member::new(lease.clone()));
                    self.sights.push(Sight { worker, burden: Burden::default() });
                }
                None => {
                    tracing::error!(instance = %lease.instance, "not routed to: the index has no number left")
                }
            }
        }
        let changed = before != kept || kept != self.members.len();
        if changed {
            let places = self.members.iter().enumerate();
            self.places = places.map(|(place, member)| (member.instance().clone(), place)).collect();
            self.roster = self.members.iter().map(|member| member.lease.clone()).collect();
            self.pages.sort(&self.roster);
            (0..self.members.len()).for_each(|place| self.recount(place));
        }
        changed
    }

    /// False if the report is of nobody here or was overtaken.
    pub fn heard_load(&mut self, load: Load, me: &InstanceId, now: Instant) -> bool {
        let follows = self.follows();
        let Some(place) = self.place(&load.instance) else { return false };
        if let (true, Some((epoch, next))) = (follows, load.kv) {
            self.members[place].follower.told(epoch, next);
        }
        self.with_load(place, |view| view.heard(load, me, now))
    }

    fn with_load<T>(&mut self, place: usize, change: impl FnOnce(&mut LoadView) -> T) -> T {
        let view = &mut self.members[place].load;
        let changed = change(view);
        self.recount(place);
        changed
    }

    fn recount(&mut self, place: usize) {
        let burden = self.members[place].load.burden();
        self.sights[place].burden = self.pages.in_units(self.page_size_at(place), burden);
    }

    /// Applies changes of a cache; says how many blocks they named.
    pub fn heard_kv(&mut self, events: KvEvents) -> usize {
        let Some(place) = self.place(&events.instance) else { return 0 };
        match self.members[place].follower.hear(events) {
            Heard::Apply(events) => self.apply(place, &events),
            Heard::Known | Heard::Waits => 0,
        }
    }

    /// Puts a snapshot in the place of what was known.
    pub fn take_snapshot(&mut self, snapshot: &KvSnapshot) {
        let Some(place) = self.place(&snapshot.instance) else { return };
        self.clear(place);
        self.index.add_all(self.sights[place].worker, snapshot.blocks.iter());
        for events in self.members[place].follower.resume(snapshot.epoch, snapshot.next) {
            self.apply(place, &events);
        }
    }

    fn apply(&mut self, place: usize, events: &KvEvents) -> usize {
        let mut named = 0;
        for change in &events.changes {
            let worker = self.sights[place].worker;
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
        let worker = &mut self.sights[place].worker;
        *worker = self.index.renew(*worker);
    }

    /// Finds out how much of a prompt each member has cached.
    pub fn look_up(&mut self, chains: &[Chain]) {
        self.index.matches(blocks_of(chains, self.page_size()), &mut self.matches);
        if !self.pages.look_up_larger(chains, &self.index) {
            return;
        }
        let unit = self.page_size();
        for (sight, member) in self.sights.iter().zip(&self.members).filter(|(_, it)| it.page_size != unit) {
            let tokens = self.pages.tokens(member.page_size, sight.worker);
            self.matches.set(sight.worker, tokens / unit);
        }
    }

    /// Tokens of a block as candidates count them: of the smallest that members have.
    pub fn page_size(&self) -> u32 {
        self.pages.unit()
    }

    /// Tokens of a block of this member.
    pub fn page_size_at(&self, place: usize) -> u32 {
        self.members[place].page_size
    }

    /// Tokens that this member has of the prompt last looked up.
    pub fn cached_tokens(&self, place: usize) -> u32 {
        let (worker, page_size) = (self.sights[place].worker, self.page_size_at(place));
        if page_size == self.page_size() {
            self.matches.depth(worker) * page_size
        } else {
            self.pages.tokens(page_size, worker)
        }
    }

    /// One member of each page size.
    pub fn one_of_each_page_size(&self) -> Vec<Arc<Lease>> {
        self.pages.leases()
    }

    /// Each member as a policy sees it, in the order of [`Self::members`], for the prompt last looked up. Made anew each
    /// time: written down, all of them would take more cache than what they are made of.
    pub fn candidates(&self, session: Option<u64>) -> impl ExactSizeIterator<Item = Candidate> + Clone {
        let sights = self.sights.iter().enumerate();
        sights.map(move |(place, sight)| self.seen(place, sight, session))
    }

    /// The one at a place of [`Self::members`].
    pub fn candidate(&self, place: usize, session: Option<u64>) -> Candidate {
        self.seen(place, &self.sights[place], session)
    }

    #[inline]
    fn seen(&self, place: usize, sight: &Sight, session: Option<u64>) -> Candidate {
        Candidate {
            overlap_blocks: self.matches.depth(sight.worker),
            prefill_tokens: sight.burden.prefill_tokens,
            used_blocks: sight.burden.blocks,
            requests: sight.burden.requests,
            session_rank: session.map_or(0, |session| self.members[place].rank(session)),
        }
    }

    /// Counts a dispatch of this number as the member's, and notes that its prompt went there: without events that is
    /// all that is known of its cache.
    pub fn dispatched(&mut self, place: usize, number: u64, work: Work, chains: &[Chain], now: Instant) {
        self.with_load(place, |view| view.dispatched(number, work, now));
        let blocks = blocks_of(chains, self.page_size_at(place));
        if let Some(guesses) = &mut self.guesses {
            guesses.note(self.sights[place].worker, blocks, now, &mut self.index);
        }
    }

    /// The dispatch of this number did not get there.
    pub fn refused(&mut self, instance: &InstanceId, number: u64) {
        if let Some(place) = self.place(instance) {
            self.with_load(place, |view| view.refused(number));
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

    /// The member if its cache must be asked for and is not being asked for; it is from now on.
    pub fn ask_for(&mut self, instance: &InstanceId) -> Option<Arc<Lease>> {
        let follows = self.follows();
        self.member_mut(instance).filter(|_| follows)?.ask()
    }

    /// [`Self::ask_for`] every member.
    pub fn ask_for_all(&mut self) -> Vec<Arc<Lease>> {
        let follows = self.follows();
        self.members.iter_mut().filter(|_| follows).filter_map(Member::ask).collect()
    }

    /// Members whose caches are not known in full.
    pub fn unknown(&self) -> usize {
        let lost = |member: &&Member| member.follower.is_lost();
        if self.follows() { self.members.iter().filter(lost).count() } else { 0 }
    }

    pub fn index(&self) -> &Index {
        &self.index
    }
}

/// Removes those that do not stay.
fn keep<T>(of: &mut Vec<T>, stays: &[bool]) {
    let mut stays = stays.iter();
    of.retain(|_| stays.next().is_none_or(|stays| *stays));
}

#[cfg(test)]
mod tests;
