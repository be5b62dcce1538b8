use std::collections::BTreeSet;

use super::Scheduler;

/// Says what is wrong unless the condition holds.
fn require(holds: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(wrong()) }
}

impl Scheduler {
    /// Verifies every invariant: reference counts, cache, slots, queues, counters. Costs time in proportion to all of
    /// them: for tests, and for an engine that idles.
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_blocks()?;
        self.check_slots()?;
        self.check_sequences()?;
        self.check_runs()
    }

    fn check_blocks(&self) -> Result<(), String> {
        let mut holders = vec![0; self.blocks.total() as usize];
        for key in &self.running {
            let Some(residence) = &self.sequences[*key].running else { continue };
            let fork = residence.fork.map(|fork| fork.from);
            for page in residence.pages.iter().copied().chain(fork) {
                holders[page.0 as usize] += 1;
            }
        }
        for page in self.runs.iter().flat_map(|(_, run)| &run.hold) {
            holders[page.0 as usize] += 1;
        }
        self.blocks.check(&holders)
    }

    fn check_slots(&self) -> Result<(), String> {
        let residences = self.running.iter().filter_map(|&key| self.sequences[key].running.as_ref());
        let in_use = residences.clone().map(|residence| residence.slot);
        let slots: BTreeSet<_> = self.free_slots.iter().copied().chain(in_use).collect();
        let counted = self.free_slots.len() + self.running.len();
        require(slots.len() == counted && counted == self.limits.running as usize, || {
            format!("{} of {} slots are free or in use, {counted} times", slots.len(), self.limits.running)
        })?;
        let closing: BTreeSet<_> = self.closing.iter().copied().collect();
        require(closing.len() == self.closing.len(), || "a slot is closed twice".to_owned())?;
        let open = residences.filter(|residence| residence.opened);
        require(open.clone().all(|residence| !closing.contains(&residence.slot)), || {
            "the slot of an open sequence is to be closed".to_owned()
        })
    }

    fn check_sequences(&self) -> Result<(), String> {
        let ranks: Vec<_> = self.running.iter().map(|&key| self.sequences[key].rank).collect();
        let parked = self.runs.iter().filter(|(_, run)| run.parked).map(|(_, run)| run.choices.len());
        let placed = self.waiting.len() + ranks.len() + parked.sum::<usize>();
        require(ranks.is_sorted() && placed == self.sequences.len(), || {
            format!("{} sequences: {} wait, running: {ranks:?}", self.sequences.len(), self.waiting.len())
        })?;
        for (key, sequence) in self.sequences.iter() {
            let run = &self.runs[sequence.run];
            let sampling = self.in_flight.iter().flat_map(|flight| &flight.rows);
            let sampling = sampling.filter(|row| row.sequence == key && row.sample).count();
            require(sequence.pending as usize == sampling, || {
                format!("{key:?} expects {} tokens and {sampling} are on their way", sequence.pending)
            })?;
            let waits = self.waiting.get(&sequence.rank) == Some(&key);
            let places = [waits, sequence.running.is_some(), run.parked];
            require(places.iter().filter(|place| **place).count() == 1, || {
                format!("{key:?} is not where it seems")
            })?;
            require(run.choices.contains(&key), || format!("{key:?} is unknown to its run"))?;
            let Some(residence) = &sequence.running else { continue };
            let length = sequence.known(run) + sequence.pending;
            let blocks = residence.pages.len() as u32;
            require(
                residence.computed <= length && self.limits.pages_for(residence.computed) <= blocks,
                || format!("{key:?} has computed {} of {length} in {blocks} blocks", residence.computed),
            )?;
            require(residence.inserted * self.limits.page_size <= residence.computed, || {
                format!("{key:?} has given {} blocks away before they were computed", residence.inserted)
            })?;
            let shared = &residence.pages[..residence.inserted as usize];
            let cached = (0..).zip(shared).all(|(index, page)| {
                self.blocks.find(sequence.hash(run, index)).is_some_and(|(cached, _)| cached == *page)
            });
            require(cached || !self.blocks.is_caching(), || format!("{key:?} holds twins of cached blocks"))?;
        }
        Ok(())
    }

    fn check_runs(&self) -> Result<(), String> {
        let queued = self.runs.iter().filter(|(_, run)| !run.started).count();
        require(queued == self.queued as usize, || format!("{queued} runs queue, not {}", self.queued))?;
        require(self.by_key.len() == self.runs.len(), || "a run is lost".to_owned())?;
        for (key, run) in self.runs.iter() {
            require(self.by_key.get(&run.key) == Some(&key), || format!("{:?} has another's key", run.key))?;
            require(!run.choices.is_empty(), || format!("{:?} has ended and stays", run.key))?;
        }
        let with_deadline = self.runs.iter().filter(|(_, run)| run.deadline.is_some()).count();
        require(with_deadline == self.deadlines.len(), || "a deadline is lost".to_owned())
    }
}
