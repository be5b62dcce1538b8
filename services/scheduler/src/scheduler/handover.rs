//! Blocks that come from, or go to, another engine.
//!
//! They are cached blocks like others, held by a run while none of its choices is there to do so: by one that waits for
//! blocks to land, until it enters the batch; by one whose blocks are wanted elsewhere, until it is cancelled.

use kv::PageId;

use super::Scheduler;
use crate::{
    Event, Goal, RunKey,
    sequence::{Run, Sequence},
    slab::Key,
};

/// What became of a block that was offered to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// No such run waits for blocks, it is not its next one, or no page is free.
    Refused,
    Taken,
    /// It was the last that may land.
    Complete,
}

impl Scheduler {
    /// Takes in the next block of a prompt that waits for blocks: `write` fills the page. A block that the cache
    /// has meanwhile is not written again.
    ///
    /// # Errors
    /// Those of `write`; nothing was taken.
    pub fn land<E>(
        &mut self,
        run: RunKey,
        block: u32,
        write: impl FnOnce(PageId) -> Result<(), E>,
    ) -> Result<Landing, E> {
        let Some(&key) = self.by_key.get(&run) else { return Ok(Landing::Refused) };
        let waiting = &self.runs[key];
        let waits = waiting.parked && waiting.goal == Goal::OutputOnceLanded;
        let may_land = (block as usize) < waiting.landable(self.limits.page_size);
        if !waits || !may_land || waiting.hold.len() != block as usize {
            return Ok(Landing::Refused);
        }
        let hash = waiting.hashes[block as usize];
        let parent = block.checked_sub(1).map_or(waiting.root, |before| waiting.hashes[before as usize]);
        let page = if let Some((page, _)) = self.blocks.find(hash) {
            self.blocks.retain(page);
            page
        } else {
            let Some(page) = self.blocks.allocate() else { return Ok(Landing::Refused) };
            if let Err(error) = write(page) {
                self.blocks.release(page);
                return Err(error);
            }
            self.blocks.insert(parent, hash, block, page)
        };
        let run = &mut self.runs[key];
        run.hold.push(page);
        let complete = run.hold.len() == run.landable(self.limits.page_size);
        Ok(if complete { Landing::Complete } else { Landing::Taken })
    }

    /// Lets a run that waited for blocks go on with those that have landed. False if none such waits.
    pub fn go_on(&mut self, run: RunKey) -> bool {
        let Some(&key) = self.by_key.get(&run) else { return false };
        let run = &mut self.runs[key];
        if !run.parked || run.goal != Goal::OutputOnceLanded {
            return false;
        }
        run.parked = false;
        for &choice in &run.choices {
            self.waiting.insert(self.sequences[choice].rank, choice);
        }
        true
    }

    /// The page of a computed block of a prompt whose blocks are wanted. It stays as it is until the next call that
    /// plans, cancels or collects.
    pub fn block(&self, run: RunKey, block: u32) -> Option<PageId> {
        let run = &self.runs[*self.by_key.get(&run)?];
        let choice = &self.sequences[*run.choices.first()?];
        match &choice.running {
            Some(residence) => residence.pages[..residence.inserted as usize].get(block as usize).copied(),
            None => run.hold.get(block as usize).copied(),
        }
    }

    /// Has a run that waits for blocks hold those that are cached. Returns how many these are, and how many may be.
    pub(super) fn hold_cached(&mut self, key: Key<Run>) -> (u32, u32) {
        let run = &mut self.runs[key];
        if !run.parked {
            return (0, 0);
        }
        let wanted = run.landable(self.limits.page_size);
        for hash in &run.hashes[..wanted] {
            let Some((page, _)) = self.blocks.find(*hash) else { break };
            self.blocks.retain(page);
            run.hold.push(page);
        }
        (run.hold.len() as u32, wanted as u32)
    }

    /// Gives up what a run holds beside its choices; it stays cached.
    pub(super) fn drop_hold(&mut self, key: Key<Run>) {
        for page in std::mem::take(&mut self.runs[key].hold).into_iter().rev() {
            self.blocks.release(page);
        }
    }

    /// Gives up the blocks that the last of the other runs holds while it waits: where nothing else can go on, they may
    /// be evicted. False if there are none.
    pub(super) fn give_way(&mut self, to: Key<Run>) -> bool {
        let holding = self
            .runs
            .iter()
            .filter(|(key, run)| *key != to && !run.hold.is_empty() && run.goal == Goal::OutputOnceLanded);
        let last = holding.max_by_key(|(_, run)| (run.arrived, run.key)).map(|(key, _)| key);
        if let Some(last) = last {
            self.drop_hold(last);
        }
        last.is_some()
    }

    /// Tells how far a prompt is whose blocks are wanted; once it is complete its choice leaves the batch and the run
    /// holds the blocks.
    pub(super) fn note_blocks(&mut self, key: Key<Sequence>, events: &mut Vec<Event>) {
        let sequence = &self.sequences[key];
        let (run_key, run) = (sequence.run, &self.runs[sequence.run]);
        let Some(residence) = sequence.running.as_ref().filter(|_| run.is_for_blocks()) else { return };
        events.push(Event::BlocksComputed { run: run.key, blocks: residence.inserted });
        if residence.inserted * self.limits.page_size < run.prompt_len() {
            return;
        }
        let pages = residence.pages.clone();
        for &page in &pages {
            self.blocks.retain(page);
        }
        self.vacate(key);
        let run = &mut self.runs[run_key];
        run.hold = pages;
        run.parked = true;
    }
}
