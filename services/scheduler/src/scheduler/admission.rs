use messages::block::BlockHash;

use super::{Scheduler, residence::Start};
use crate::{
    EndReason, Event, LPM_PATIENCE, LPM_WINDOW, Micros, SchedulePolicy,
    sequence::{Run, Sequence},
    slab::Key,
};

/// Output tokens for which room is kept beside each running sequence before another one enters, so that entering
/// does not lead to preemption at once.
const HEADROOM_TOKENS: u32 = 32;

/// What the running sequences leave to those that wait.
#[derive(Debug, Default)]
struct Room {
    /// Prompt tokens that the step can take up.
    prefill_budget: u32,
    /// Prompt tokens that running sequences lack, by priority.
    backlog: Vec<(i32, u32)>,
    /// What one that waits may have of the step whatever the backlog.
    least: u32,
    /// Prompt tokens that those lack that have just entered.
    entered: u32,
    /// Blocks that running sequences will soon need.
    reserved_blocks: u32,
    /// Blocks of prompts that are being computed, with the priority of who does it: waiting for one is cheaper than
    /// computing it a second time.
    computing: Vec<(BlockHash, i32)>,
}

impl Room {
    /// Prompt tokens that the step has left for one of this priority: what runs at a lower one stands back.
    fn prefill_tokens(&self, priority: i32) -> u32 {
        let before = self.backlog.iter().filter(|(of, _)| *of >= priority).map(|(_, tokens)| tokens);
        let before = before.fold(0, |sum: u32, tokens| sum.saturating_add(*tokens));
        self.prefill_budget.saturating_sub(before).max(self.least).saturating_sub(self.entered)
    }

    fn note_backlog(&mut self, priority: i32, tokens: u32) {
        // Running sequences are in order of rank.
        match self.backlog.last_mut() {
            Some((last, sum)) if *last == priority => *sum = sum.saturating_add(tokens),
            _ => self.backlog.push((priority, tokens)),
        }
    }
}

enum Verdict {
    Entered,
    /// Its turn comes later; those behind it may go first.
    Held,
    /// It must be the next to enter.
    NoRoom,
}

impl Scheduler {
    /// Lets waiting sequences enter the batch as far as slots, blocks and the step's token budget go.
    pub(super) fn admit_waiting(&mut self, now: Micros, events: &mut Vec<Event>) {
        let Some(first) = self.may_any_enter() else { return };
        let mut room = self.room();
        if room.prefill_tokens(self.sequences[first].rank.priority.0) == 0 {
            return;
        }
        let mut candidates = std::mem::take(&mut self.scratch.sequences);
        candidates.clear();
        candidates.extend(self.waiting.values().take(LPM_WINDOW));
        if self.config.schedule_policy == SchedulePolicy::Lpm && candidates.len() > 1 {
            candidates.sort_by_cached_key(|&key| {
                let rank = self.sequences[key].rank;
                let waited_enough = self.sequences[key].waited(now) >= LPM_PATIENCE;
                let matched = if waited_enough { u32::MAX } else { self.cached_blocks(key).0 };
                (rank.priority, std::cmp::Reverse(matched), rank)
            });
        }
        for &key in &candidates {
            if room.prefill_tokens(self.sequences[key].rank.priority.0) == 0 {
                break;
            }
            match self.try_enter(key, &mut room, now, events) {
                Verdict::Entered | Verdict::Held => {}
                Verdict::NoRoom => break,
            }
        }
        self.scratch.sequences = candidates;
    }

    /// The first in rank that waits, if there is a slot for it or a sequence that it may push out.
    fn may_any_enter(&self) -> Option<Key<Sequence>> {
        let (_, &first) = self.waiting.first_key_value()?;
        (!self.free_slots.is_empty() || self.lower_priority(first).is_some()).then_some(first)
    }

    fn room(&self) -> Room {
        let mut room = Room::default();
        let mut decodes = 0;
        for &key in &self.running {
            let sequence = &self.sequences[key];
            let missing = self.missing(sequence);
            decodes += u32::from(missing == 1);
            if missing > 1 {
                room.note_backlog(sequence.rank.priority.0, missing);
            }
            room.reserved_blocks += self.growth(sequence);
            room.computing.extend(self.computing(sequence));
        }
        room.prefill_budget = self.prefill_budget(decodes);
        room.least = if self.is_sparing(decodes) { self.limits.page_size } else { 0 };
        room
    }

    /// Blocks that a running sequence will need for its next tokens.
    fn growth(&self, sequence: &Sequence) -> u32 {
        let run = &self.runs[sequence.run];
        let ahead = sequence.remaining_output(run).min(HEADROOM_TOKENS);
        let held = sequence.running.as_ref().map_or(0, |residence| residence.pages.len() as u32);
        self.limits.pages_for(sequence.known(run) + sequence.pending + ahead).saturating_sub(held)
    }

    /// The next block of its prompt that a running sequence will have computed.
    fn computing(&self, sequence: &Sequence) -> Option<(BlockHash, i32)> {
        let hash = self.runs[sequence.run].hashes.get(sequence.running.as_ref()?.inserted as usize)?;
        Some((*hash, sequence.rank.priority.0))
    }

    fn try_enter(
        &mut self,
        key: Key<Sequence>,
        room: &mut Room,
        now: Micros,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let sequence = &self.sequences[key];
        if sequence.pending > 0 {
            // Its last token is still on its way.
            return Verdict::Held;
        }
        if sequence.target(&self.runs[sequence.run]) == 0 {
            // The scores that it was here for are on their way, or another choice has them already.
            let run = sequence.run;
            let mut rows = self.in_flight.iter().flat_map(|flight| &flight.rows);
            if !rows.any(|row| row.run == run && row.score.is_some()) {
                self.end(key, EndReason::Length, events);
            }
            return Verdict::Held;
        }
        loop {
            let Some((start, idle)) = self.start(key, room) else { return Verdict::Held };
            let sequence = &self.sequences[key];
            let target = sequence.target(&self.runs[sequence.run]);
            // Idle blocks that it shares are available no more.
            let needed = self.limits.pages_for(target) - start.shared + idle;
            if !self.free_slots.is_empty() && needed + room.reserved_blocks <= self.blocks.available() {
                self.enter(key, start, now, events);
                let sequence = &self.sequences[key];
                room.reserved_blocks += self.growth(sequence);
                room.computing.extend(self.computing(sequence));
                room.entered = room.entered.saturating_add(self.missing(sequence));
                self.note_blocks(key, events);
                return Verdict::Entered;
            }
            match self.lower_priority(key) {
                Some(lower) => self.preempt(lower),
                None if self.running.is_empty() && self.give_way(self.sequences[key].run) => {}
                None => return Verdict::NoRoom,
            }
            *room = self.room();
        }
    }

    /// The last of the running sequences, if its priority is so low that a waiting one may take its place.
    fn lower_priority(&self, waiting: Key<Sequence>) -> Option<Key<Sequence>> {
        let last = *self.running.last()?;
        let lower = self.sequences[last].rank.priority > self.sequences[waiting].rank.priority;
        (lower && self.config.priority_preemption).then_some(last)
    }

    /// With what the sequence can start, and how many of the blocks are idle now. `None`: it should wait for a block
    /// that is being computed.
    fn start(&mut self, key: Key<Sequence>, room: &Room) -> Option<(Start, u32)> {
        let (cached, idle) = self.cached_blocks(key);
        let mut start = Start { shared: cached, computed: cached * self.limits.page_size, source: None };
        let sequence = &self.sequences[key];
        let run = &self.runs[sequence.run];
        let shareable = shareable(sequence, run);
        let common = run.prompt_len().min(sequence.target(run) - 1);
        let forkable = common.min(shareable);
        if forkable > start.computed {
            for &other in &run.choices {
                let Some(residence) = &self.sequences[other].running else { continue };
                // Blocks that the cache does not know yet may turn out to be twins of others.
                let known_to_cache = residence.inserted >= common / self.limits.page_size;
                if residence.computed < common || (self.blocks.is_caching() && !known_to_cache) {
                    return None;
                }
                // A fork that has not run yet has nothing to copy from.
                if residence.fork.is_none() {
                    let shared = forkable / self.limits.page_size;
                    start = Start { shared, computed: forkable, source: Some(other) };
                    return Some((start, 0));
                }
            }
        }
        let shareable_blocks = shareable / self.limits.page_size;
        if let Some(next) = run.hashes.get(cached as usize).filter(|_| cached < shareable_blocks) {
            let priority = sequence.rank.priority.0;
            if room.computing.iter().any(|(block, of)| block == next && *of >= priority) {
                return None;
            }
        }
        Some((start, idle))
    }

    /// How many leading blocks of the sequence the cache holds, and how many of these are idle.
    ///
    /// Who holds a block holds all before it, so the cached blocks are the first ones, and the held among them too.
    fn cached_blocks(&self, key: Key<Sequence>) -> (u32, u32) {
        let sequence = &self.sequences[key];
        let run = &self.runs[sequence.run];
        let hashed = (run.hashes.len() + sequence.tail_hashes.len()) as u32;
        let blocks = (shareable(sequence, run) / self.limits.page_size).min(hashed);
        let find = |index| self.blocks.find(sequence.hash(run, index));
        let cached = count_leading(blocks, |index| find(index).is_some());
        let held = count_leading(cached, |index| find(index).is_some_and(|(_, idle)| !idle));
        (cached, cached - held)
    }
}

/// How many of `0..count` satisfy the predicate, which holds up to some index and not from there on.
fn count_leading(count: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Leading tokens whose KV may come from elsewhere: not the last one if its logits are wanted, and none that precedes
/// a token to be scored.
fn shareable(sequence: &Sequence, run: &Run) -> u32 {
    if run.is_for_blocks() {
        return run.prompt_len();
    }
    let before_last = sequence.target(run) - 1;
    if run.is_scoring() { before_last.min(run.score_next - 1) } else { before_last }
}
