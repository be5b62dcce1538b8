use super::{
    Worker,
    crowd::{Crowd, Crowds, bits},
    holders::{Holders, View},
};

/// How many leading blocks of a prompt each worker holds. Kept from query to query, so that none allocates.
#[derive(Debug, Default)]
pub struct Matches {
    depths: Vec<u32>,
    /// Workers that match every block so far, as bits.
    matching: Vec<u64>,
    holding: Vec<u64>,
    depth: u32,
    /// Who holds the last block.
    last: Option<Holders>,
}

impl Matches {
    /// Leading blocks that `worker` holds.
    pub fn depth(&self, Worker(worker): Worker) -> u32 {
        self.depths.get(usize::from(worker)).copied().unwrap_or(0)
    }

    /// Says that `worker` holds so many.
    pub fn set(&mut self, Worker(worker): Worker, depth: u32) {
        if let Some(known) = self.depths.get_mut(usize::from(worker)) {
            *known = depth;
        }
    }

    pub(super) fn begin(&mut self, workers: usize) {
        (self.depth, self.last) = (0, None);
        self.depths.clear();
        self.depths.resize(workers, 0);
        let words = workers.div_ceil(64);
        self.matching.clear();
        self.matching.resize(words, u64::MAX);
        self.holding.resize(words, 0);
    }

    /// Takes in the holders of the next block; false once nobody matches any more.
    pub(super) fn narrow(&mut self, holders: Holders, crowds: &Crowds) -> bool {
        // A prefix lies at the same workers from block to block.
        if self.last.is_some_and(|last| last.same(holders, crowds)) {
            self.depth += 1;
            return true;
        }
        self.last = Some(holders);
        self.holding.fill(0);
        match holders.view() {
            View::Few(lanes) => lanes.into_iter().for_each(|worker| self.hold(worker)),
            View::Crowd(place) => match crowds.get(place) {
                Crowd::Listed(listed) => listed.iter().for_each(|worker| self.hold(*worker)),
                Crowd::Mapped { marks, .. } => {
                    let words = marks.words();
                    self.holding[..words.len()].copy_from_slice(words);
                }
            },
        }
        let mut any = 0;
        for (place, (matching, holding)) in self.matching.iter_mut().zip(&self.holding).enumerate() {
            if self.depth > 0 {
                settle(&mut self.depths, place, *matching & !holding, self.depth);
            }
            *matching &= holding;
            any |= *matching;
        }
        self.depth += 1;
        any != 0
    }

    /// Whoever still matches holds all.
    pub(super) fn end(&mut self) {
        if self.depth > 0 {
            for (place, word) in self.matching.iter().enumerate() {
                settle(&mut self.depths, place, *word, self.depth);
            }
        }
    }

    /// The mark of an empty lane is beyond all workers.
    fn hold(&mut self, worker: u16) {
        if let Some(word) = self.holding.get_mut(usize::from(worker) / 64) {
            *word |= 1 << (worker % 64);
        }
    }
}

fn settle(depths: &mut [u32], place: usize, word: u64, depth: u32) {
    for bit in bits(word) {
        depths[64 * place + usize::from(bit)] = depth;
    }
}
