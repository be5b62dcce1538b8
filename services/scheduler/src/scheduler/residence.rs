use models::SlotId;

use super::Scheduler;
use crate::{
    EndReason, Event, Micros,
    sequence::{Fork, Residence, Sequence},
    slab::Key,
};

/// Blocks with which a sequence enters the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// Leading blocks that are shared.
    pub shared: u32,
    /// Positions that need not be computed.
    pub computed: u32,
    /// Another choice of the run to share with, instead of the cache.
    pub source: Option<Key<Sequence>>,
}

impl Scheduler {
    /// Gives a waiting sequence a slot and the blocks of all its tokens. There must be room for both.
    pub(super) fn enter(&mut self, key: Key<Sequence>, start: Start, now: Micros, events: &mut Vec<Event>) {
        let mut pages = self.scratch.pages.pop().unwrap_or_default();
        let mut inserted = start.shared;
        let mut fork = None;
        if let Some(source) = start.source {
            let source = self.sequences[source].running.as_ref().expect("sources run");
            pages.extend_from_slice(&source.pages[..start.shared as usize]);
            inserted = inserted.min(source.inserted);
            if start.computed > start.shared * self.limits.page_size {
                let from = source.pages[start.shared as usize];
                self.blocks.retain(from);
                fork = Some(Fork { from, to_block: start.shared });
            }
        } else {
            let sequence = &self.sequences[key];
            let run = &self.runs[sequence.run];
            let found = (0..start.shared).map_while(|index| self.blocks.find(sequence.hash(run, index)));
            pages.extend(found.map(|(page, _)| page));
        }
        for &page in &pages {
            self.blocks.retain(page);
        }
        self.drop_hold(self.sequences[key].run);
        let sequence = &mut self.sequences[key];
        let run = &mut self.runs[sequence.run];
        while (pages.len() as u32) < self.limits.pages_for(sequence.target(run)) {
            pages.push(self.blocks.allocate().expect("there is room"));
        }
        sequence.residence += 1;
        sequence.running = Some(Residence {
            slot: self.free_slots.pop().expect("there is a slot"),
            opened: false,
            pages,
            computed: start.computed,
            inserted,
            fork,
        });
        if !run.started {
            run.started = true;
            run.usage.cached_tokens = start.computed.min(run.prompt_len());
            let queue_time = now.since(run.arrived);
            events.push(Event::Started { run: run.key, cached_tokens: run.usage.cached_tokens, queue_time });
            self.queued -= 1;
        }
        let rank = sequence.rank;
        self.waiting.remove(&rank);
        let at = self.running.partition_point(|&other| self.sequences[other].rank < rank);
        self.running.insert(at, key);
    }

    /// Takes slot and blocks from a running sequence.
    pub(super) fn vacate(&mut self, key: Key<Sequence>) {
        let rank = self.sequences[key].rank;
        let at = self.running.partition_point(|&other| self.sequences[other].rank < rank);
        self.running.remove(at);
        let Some(mut residence) = self.sequences[key].running.take() else { return };
        if let Some(fork) = residence.fork {
            self.blocks.release(fork.from);
        }
        for page in residence.pages.drain(..).rev() {
            self.blocks.release(page);
        }
        self.scratch.pages.push(residence.pages);
        self.free_slot(residence.slot, residence.opened);
    }

    fn free_slot(&mut self, slot: SlotId, opened: bool) {
        self.free_slots.push(slot);
        if opened {
            self.closing.push(slot);
        }
    }

    /// Sends a running sequence back to wait. It will go on from its output; what steps in flight sample for it is
    /// added to that.
    pub(super) fn preempt(&mut self, key: Key<Sequence>) {
        self.vacate(key);
        self.waiting.insert(self.sequences[key].rank, key);
        self.preemptions += 1;
    }

    /// Ends a sequence wherever it is, and its run with the last one.
    pub(super) fn end(&mut self, key: Key<Sequence>, reason: EndReason, events: &mut Vec<Event>) {
        if self.sequences[key].running.is_some() {
            self.vacate(key);
        }
        let Some(sequence) = self.sequences.remove(key) else { return };
        self.waiting.remove(&sequence.rank);
        let run = &mut self.runs[sequence.run];
        run.choices.retain(|&choice| choice != key);
        events.push(Event::Ended { run: run.key, choice: sequence.choice, reason });
        if !run.choices.is_empty() {
            return;
        }
        events.push(Event::RunClosed { run: run.key, usage: run.usage });
        self.drop_hold(sequence.run);
        let run = &self.runs[sequence.run];
        self.queued -= u32::from(!run.started);
        self.by_key.remove(&run.key);
        if let Some(deadline) = run.deadline {
            self.deadlines.remove(&(deadline, run.key));
        }
        self.runs.remove(sequence.run);
    }
}
