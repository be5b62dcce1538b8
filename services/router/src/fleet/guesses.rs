use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::index::{Index, Worker};

/// Blocks guessed at once; beyond, the oldest guesses are dropped.
const BLOCKS_AT_MOST: usize = 1 << 20;

/// What caches hold if every dispatched prompt stays cached for a while after its last use.
#[derive(Debug)]
pub struct Guesses {
    ttl: Duration,
    used: HashMap<(Worker, u64), Instant>,
    order: VecDeque<(Instant, Worker, Vec<u64>)>,
    blocks: usize,
}

impl Guesses {
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, used: HashMap::new(), order: VecDeque::new(), blocks: 0 }
    }

    pub fn note(&mut self, worker: Worker, chain: &[u64], now: Instant, index: &mut Index) {
        for block in chain {
            index.add(worker, *block);
            self.used.insert((worker, *block), now);
        }
        self.blocks += chain.len();
        self.order.push_back((now, worker, chain.to_vec()));
        while self.blocks > BLOCKS_AT_MOST {
            self.drop_oldest(index);
        }
    }

    pub fn expire(&mut self, now: Instant, index: &mut Index) {
        while self.order.front().is_some_and(|(used, ..)| now.duration_since(*used) >= self.ttl) {
            self.drop_oldest(index);
        }
    }

    /// The worker is gone, and its number may soon be another's.
    pub fn forget(&mut self, worker: Worker) {
        self.used.retain(|(of, _), _| *of != worker);
        self.order.retain(|(_, of, _)| *of != worker);
        self.blocks = self.order.iter().map(|(.., chain)| chain.len()).sum();
    }

    fn drop_oldest(&mut self, index: &mut Index) {
        let Some((noted, worker, chain)) = self.order.pop_front() else { return };
        self.blocks -= chain.len();
        for block in chain {
            // A later prompt may have used it since.
            if self.used.get(&(worker, block)).is_some_and(|used| *used <= noted) {
                self.used.remove(&(worker, block));
                index.remove(worker, block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Matches;

    #[test]
    fn a_guess_holds_from_its_last_use() {
        let (mut index, mut matches) = (Index::default(), Matches::default());
        let worker = index.enlist().unwrap();
        let mut guesses = Guesses::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        guesses.note(worker, &[1, 2, 3], at(0), &mut index);
        guesses.note(worker, &[1, 2], at(5), &mut index);
        let mut depth = |guesses: &mut Guesses, now| {
            guesses.expire(now, &mut index);
            index.matches(&[1, 2, 3], &mut matches);
            matches.depth(worker)
        };
        assert_eq!(depth(&mut guesses, at(9)), 3);
        assert_eq!(depth(&mut guesses, at(11)), 2, "the head was used again at 5");
        assert_eq!(depth(&mut guesses, at(15)), 0);
    }
}
