//! The KV blocks of one engine: pages in use by sequences, pages that only the prefix cache holds, free pages.
//!
//! The cache is a radix tree whose edges are whole blocks. Since a block's hash chains its parent's, the tree is
//! kept as a map from hash to page, and walking it is looking up one hash after the other. Two rules keep it whole:
//! who holds a cached block holds all blocks before it ([`Blocks::insert`] hands out the page that is cached
//! already instead of keeping a twin), and a sequence releases its blocks last first. So a block always becomes
//! idle before its parent does, and evicting the block that has been idle for longest always takes a leaf.

mod idle;
mod log;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use kv::{PageId, PagePool};
use messages::block::BlockHash;

use self::{idle::IdleList, log::KvLog};
use crate::KvEvent;

#[derive(Debug)]
pub(crate) struct Blocks {
    pool: PagePool,
    /// False: nothing is ever inserted.
    caching: bool,
    /// The cache has one reference to each of these pages.
    cached: HashMap<BlockHash, PageId, BuildHasherDefault<Prehashed>>,
    /// By page: what is cached in it.
    nodes: Vec<Option<Node>>,
    /// Cached pages that no sequence holds.
    idle: IdleList,
    log: KvLog,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    hash: BlockHash,
    parent: BlockHash,
    /// Blocks before this one.
    depth: u32,
}

impl Blocks {
    pub fn new(pages: u32, caching: bool, events: bool) -> Self {
        Self {
            pool: PagePool::new(pages),
            caching,
            cached: HashMap::default(),
            nodes: vec![None; pages as usize],
            idle: IdleList::new(pages),
            log: KvLog::new(events && caching),
        }
    }

    pub fn total(&self) -> u32 {
        self.pool.capacity()
    }

    /// Blocks that no sequence holds and the cache does.
    pub fn idle(&self) -> u32 {
        self.idle.len()
    }

    /// Blocks that [`Self::allocate`] can hand out.
    pub fn available(&self) -> u32 {
        self.pool.free() + self.idle.len()
    }

    pub fn is_caching(&self) -> bool {
        self.caching
    }

    /// The cached block of this name, without holding it; and whether it is idle.
    pub fn find(&self, hash: BlockHash) -> Option<(PageId, bool)> {
        let page = *self.cached.get(&hash)?;
        Some((page, self.pool.references(page) == 1))
    }

    /// Hands out a block for new contents, evicting the one that was idle for longest if none is free.
    pub fn allocate(&mut self) -> Option<PageId> {
        if self.pool.free() == 0 {
            self.evict();
        }
        self.pool.allocate()
    }

    fn evict(&mut self) -> bool {
        let Some(page) = self.idle.pop_oldest() else { return false };
        let node = self.nodes[page.0 as usize].take().expect("idle pages are cached");
        self.cached.remove(&node.hash);
        self.pool.release(page);
        self.log.push(KvEvent::Removed { block: node.hash });
        true
    }

    /// Adds a holder to a block that is held or cached.
    pub fn retain(&mut self, page: PageId) {
        if self.is_idle(page) {
            self.idle.remove(page);
        }
        self.pool.retain(page);
    }

    /// Drops a holder. A sequence that drops several goes from its last block to its first.
    pub fn release(&mut self, page: PageId) {
        self.pool.release(page);
        if self.is_idle(page) {
            self.idle.push_newest(page);
        }
    }

    fn is_idle(&self, page: PageId) -> bool {
        self.nodes[page.0 as usize].is_some() && self.pool.references(page) == 1
    }

    /// Makes a computed block findable, the caller holding it and its parents. Returns the page that holds the
    /// block from now on: `page`, or the one that was cached first, held in its stead.
    pub fn insert(&mut self, parent: BlockHash, hash: BlockHash, depth: u32, page: PageId) -> PageId {
        if !self.caching {
            return page;
        }
        match self.cached.get(&hash) {
            Some(&first) if first == page => page,
            Some(&first) => {
                self.retain(first);
                self.release(page);
                first
            }
            None => {
                self.cached.insert(hash, page);
                self.nodes[page.0 as usize] = Some(Node { hash, parent, depth });
                self.pool.retain(page);
                self.log.push(KvEvent::Stored { parent, block: hash });
                page
            }
        }
    }

    /// Forgets every block that no sequence holds.
    pub fn clear(&mut self) {
        if self.idle.len() > 0 && self.idle.len() == self.cached.len() as u32 {
            for page in std::iter::from_fn(|| self.idle.pop_oldest()) {
                self.nodes[page.0 as usize] = None;
                self.pool.release(page);
            }
            self.cached.clear();
            self.log.push(KvEvent::Cleared);
        } else {
            while self.evict() {}
        }
    }

    pub fn take_events(&mut self, out: &mut Vec<KvEvent>) -> bool {
        self.log.take(out)
    }

    /// The whole cache, parents first.
    pub fn snapshot(&self) -> Vec<KvEvent> {
        let mut nodes: Vec<Node> = self.nodes.iter().copied().flatten().collect();
        nodes.sort_by_key(|node| node.depth);
        nodes.iter().map(|node| KvEvent::Stored { parent: node.parent, block: node.hash }).collect()
    }

    /// Verifies pool, tree and idle list, given how many holders each page has.
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn check(&self, holders: &[u32]) -> Result<(), String> {
        self.pool.check()?;
        if self.cached.len() != self.nodes.iter().flatten().count() {
            return Err(format!(
                "{} hashes name {:?} nodes",
                self.cached.len(),
                self.nodes.iter().flatten().count()
            ));
        }
        let mut idle_at: HashMap<PageId, usize> = HashMap::new();
        for (at, page) in self.idle.iter().enumerate() {
            if idle_at.insert(page, at).is_some() {
                return Err(format!("page {} is idle twice", page.0));
            }
        }
        if idle_at.len() != self.idle.len() as usize {
            return Err(format!("{} pages are idle and {} are counted", idle_at.len(), self.idle.len()));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let page = PageId(index as u32);
            let expected = holders[index] + u32::from(node.is_some());
            if self.pool.references(page) != expected {
                let references = self.pool.references(page);
                return Err(format!("page {index} has {references} references instead of {expected}"));
            }
            if self.is_idle(page) != idle_at.contains_key(&page) {
                return Err(format!("page {index} is wrongly in or out of the idle list"));
            }
            let Some(node) = node else { continue };
            if self.cached.get(&node.hash) != Some(&page) {
                return Err(format!("page {index} is not found under its hash"));
            }
            if node.depth == 0 {
                continue;
            }
            let Some(parent) = self.cached.get(&node.parent) else {
                return Err(format!("page {index} is cached without its parent"));
            };
            match (idle_at.get(&page), idle_at.get(parent)) {
                (None, Some(_)) => return Err(format!("page {index} is held without its parent")),
                (Some(child), Some(parent)) if child > parent => {
                    return Err(format!("page {index} would be evicted after its parent"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Block hashes are uniform already: 64 of their bits serve as they are.
#[derive(Debug, Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}
