//! Which blocks lie at which workers, and how much of a prompt each of them holds.
//!
//! A block's id chains its parent's, so equal ids mean equal prefixes, and a cache that holds a block holds all that
//! comes before it. A radix tree over all workers is therefore a flat map from block to holders: the workers that
//! match a prompt to some depth are those found at every block up to there.

mod crowd;
mod holders;
mod matches;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crowd::{Crowds, Marks};
use holders::{Holders, View};
pub use matches::Matches;

/// A worker in one index: a small number, so that a set of them is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Worker(u16);

/// Workers that one index can tell apart, those on their way out included.
pub const MAX_WORKERS: usize = holders::NUMBERS;

/// The map is cut in shards by id, so that one of them grows or is swept at a time.
const SHARDS: usize = 256;
/// Blocks whose holders are looked up together, so that their cache misses overlap.
const AHEAD: usize = 16;

type Shard = HashMap<u64, Holders, BuildHasherDefault<IdHasher>>;

/// The index of one pool.
#[derive(Debug)]
pub struct Index {
    shards: Vec<Shard>,
    crowds: Crowds,
    /// Numbers given out so far, whether in use or not.
    numbers: u16,
    free: Vec<Worker>,
    /// Dismissed since the sweep began, or since the last one ended.
    dismissed: Vec<Worker>,
    sweep: Option<Sweep>,
    pairs: usize,
}

/// One pass over all shards that removes the workers dismissed before it began.
#[derive(Debug)]
struct Sweep {
    workers: Vec<Worker>,
    marks: Marks,
    next: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            crowds: Crowds::default(),
            numbers: 0,
            free: Vec::new(),
            dismissed: Vec::new(),
            sweep: None,
            pairs: 0,
        }
    }
}

impl Index {
    /// A new worker that holds nothing; `None` if [`MAX_WORKERS`] are in use.
    pub fn enlist(&mut self) -> Option<Worker> {
        if self.free.is_empty() && usize::from(self.numbers) == MAX_WORKERS {
            while self.sweep() {}
        }
        self.free.pop().or_else(|| {
            (usize::from(self.numbers) < MAX_WORKERS).then(|| {
                self.numbers += 1;
                Worker(self.numbers - 1)
            })
        })
    }

    /// Forgets a worker at once; what it held is taken out of the map by and by, by [`Self::sweep`].
    pub fn dismiss(&mut self, worker: Worker) {
        self.dismissed.push(worker);
    }

    /// Forgets what a worker held: it goes on under another number.
    pub fn renew(&mut self, worker: Worker) -> Worker {
        self.dismiss(worker);
        self.enlist().expect("a sweep gives at least the dismissed number back")
    }

    /// `worker` holds `block` from now on; false if it did already.
    pub fn add(&mut self, worker: Worker, block: u64) -> bool {
        let holders = self.shards[shard(block)].entry(block).or_insert(Holders::NONE);
        let added = holders.add(worker, &mut self.crowds);
        self.pairs += usize::from(added);
        added
    }

    /// `worker` holds `block` no more; false if it did not.
    pub fn remove(&mut self, worker: Worker, block: u64) -> bool {
        let shard = &mut self.shards[shard(block)];
        let Some(holders) = shard.get_mut(&block) else { return false };
        let removed = holders.remove(worker, &mut self.crowds);
        if *holders == Holders::NONE {
            shard.remove(&block);
        }
        self.pairs -= usize::from(removed);
        removed
    }

    /// [`Self::add`] for many.
    pub fn add_all(&mut self, worker: Worker, blocks: impl Iterator<Item = u64>) {
        for block in blocks {
            self.add(worker, block);
        }
    }

    /// [`Self::remove`] for many.
    pub fn remove_all(&mut self, worker: Worker, blocks: impl Iterator<Item = u64>) {
        for block in blocks {
            self.remove(worker, block);
        }
    }

    /// Removes dismissed workers from a part of the map; false if none is left. A part is one of 256.
    pub fn sweep(&mut self) -> bool {
        if self.sweep.is_none() && self.dismissed.is_empty() {
            return false;
        }
        let sweep = self.sweep.get_or_insert_with(|| {
            let workers = std::mem::take(&mut self.dismissed);
            Sweep { marks: workers.iter().copied().collect(), workers, next: 0 }
        });
        let (crowds, pairs) = (&mut self.crowds, &mut self.pairs);
        self.shards[sweep.next].retain(|_, holders| {
            *pairs -= holders.remove_all(&sweep.marks, crowds);
            *holders != Holders::NONE
        });
        sweep.next += 1;
        if sweep.next == SHARDS {
            self.free.append(&mut sweep.workers);
            self.sweep = None;
        }
        true
    }

    /// How many leading blocks of `chain` each worker holds.
    pub fn matches(&self, chain: &[u64], out: &mut Matches) {
        out.begin(usize::from(self.numbers));
        for blocks in chain.chunks(AHEAD) {
            let mut found = [Holders::NONE; AHEAD];
            for (holders, block) in found.iter_mut().zip(blocks) {
                *holders = self.shards[shard(*block)].get(block).copied().unwrap_or(Holders::NONE);
            }
            for holders in &found[..blocks.len()] {
                if let View::Crowd(place) = holders.view() {
                    self.crowds.touch(place);
                }
            }
            for holders in &found[..blocks.len()] {
                if !out.narrow(*holders, &self.crowds) {
                    return;
                }
            }
        }
        out.end();
    }

    /// Blocks that any worker holds.
    pub fn blocks(&self) -> usize {
        self.shards.iter().map(Shard::len).sum()
    }

    /// Blocks that all workers hold, each counted.
    pub fn pairs(&self) -> usize {
        self.pairs
    }
}

/// Bits that neither the bucket nor the tag of a hash table takes.
fn shard(block: u64) -> usize {
    (block >> 40) as usize % SHARDS
}

/// Block ids are cut from a keyed cryptographic hash: they need no other.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only block ids are hashed");
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

#[cfg(test)]
mod tests;
