//! Byte-pair merging over the bytes of a word.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

/// Words of so many symbols merge fastest by looking at every pair again; longer ones need the heap's order.
const SHORT: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The ids of single bytes.
#[derive(Debug)]
pub struct Bytes {
    /// None for a byte that the vocabulary lacks.
    pub ids: [Option<u32>; 256],
    /// Stands for a byte that the vocabulary lacks; without it such bytes are left out.
    pub unknown: Option<u32>,
    /// Unknown bytes in a row are one unknown token.
    pub fuse_unknown: bool,
}

/// Merge rules by the pair of ids that they join.
pub struct Bpe {
    bytes: Bytes,
    merges: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
}

/// Pairs of ids need mixing only.
#[derive(Default)]
pub struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, pair: u64) {
        let mixed = (self.0 ^ pair).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Bpe {
    /// `merges`: (left, right, joined) in order of rank.
    pub fn new(bytes: Bytes, merges: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let merges =
            merges.zip(0..).map(|((left, right, id), rank)| (key(left, right), Merge { rank, id })).collect();
        Self { bytes, merges }
    }

    /// Appends the ids of a word.
    pub fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        if word.len() <= SHORT {
            self.encode_short(word, ids);
        } else {
            self.encode_long(word, ids);
        }
    }

    /// The symbols that merging begins with.
    fn symbols(&self, word: &[u8], mut push: impl FnMut(u32)) {
        let mut after_unknown = false;
        for byte in word {
            let id = self.bytes.ids[usize::from(*byte)];
            match id.or(self.bytes.unknown) {
                Some(_) if id.is_none() && after_unknown && self.bytes.fuse_unknown => {}
                Some(id) => push(id),
                None => continue,
            }
            after_unknown = id.is_none();
        }
    }

    fn find(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&key(left, right)).copied()
    }

    /// The lowest rank first, of equal ones the leftmost, until no pair merges.
    fn encode_short(&self, word: &[u8], ids: &mut Vec<u32>) {
        const NONE: Merge = Merge { rank: u32::MAX, id: u32::MAX };
        let mut symbols = [0u32; SHORT];
        let mut merges = [NONE; SHORT];
        let mut len = 0;
        self.symbols(word, |id| {
            symbols[len] = id;
            len += 1;
        });
        let merge_at =
            |symbols: &[u32; SHORT], at: usize| self.find(symbols[at], symbols[at + 1]).unwrap_or(NONE);
        for (at, merge) in merges.iter_mut().enumerate().take(len.saturating_sub(1)) {
            *merge = merge_at(&symbols, at);
        }
        while len > 1 {
            let mut best = 0;
            for at in 1..len - 1 {
                if merges[at].rank < merges[best].rank {
                    best = at;
                }
            }
            if merges[best] == NONE {
                break;
            }
            symbols[best] = merges[best].id;
            symbols.copy_within(best + 2..len, best + 1);
            merges.copy_within(best + 1..len, best);
            len -= 1;
            if best > 0 {
                merges[best - 1] = merge_at(&symbols, best - 1);
            }
            if best + 1 < len {
                merges[best] = merge_at(&symbols, best);
            }
        }
        ids.extend_from_slice(&symbols[..len]);
    }

    /// The same by a heap over a linked list: n log n for words of any length.
    fn encode_long(&self, word: &[u8], ids: &mut Vec<u32>) {
        const GONE: u32 = u32::MAX;
        let mut symbols = Vec::with_capacity(word.len());
        self.symbols(word, |id| symbols.push(id));
        let end = symbols.len();
        let mut next: Vec<usize> = (1..=end).collect();
        let mut previous: Vec<Option<usize>> = (0..end).map(|at| at.checked_sub(1)).collect();
        let mut heap = BinaryHeap::new();
        for at in 0..end.saturating_sub(1) {
            if let Some(merge) = self.find(symbols[at], symbols[at + 1]) {
                heap.push(Reverse((merge.rank, at, merge.id)));
            }
        }
        while let Some(Reverse((rank, at, id))) = heap.pop() {
            let right = next[at];
            if symbols[at] == GONE || right == end {
                continue;
            }
            // The pair may have changed since it was queued.
            if self.find(symbols[at], symbols[right]) != Some(Merge { rank, id }) {
                continue;
            }
            symbols[at] = id;
            symbols[right] = GONE;
            next[at] = next[right];
            if next[at] < end {
                previous[next[at]] = Some(at);
                if let Some(merge) = self.find(id, symbols[next[at]]) {
                    heap.push(Reverse((merge.rank, at, merge.id)));
                }
            }
            if let Some(before) = previous[at]
                && let Some(merge) = self.find(symbols[before], id)
            {
                heap.push(Reverse((merge.rank, before, merge.id)));
            }
        }
        ids.extend(symbols.into_iter().filter(|id| *id != GONE));
    }
}
