use std::collections::BTreeMap;

use messages::block::{CacheScope, ClusterKey};
use proptest::prelude::*;

use super::*;

type Path = Vec<u32>;

/// The cache as a set of paths, searched by brute force.
#[derive(Default)]
struct Model {
    /// Holders, and when the path became idle.
    nodes: BTreeMap<Path, (u32, u64)>,
    clock: u64,
    /// Blocks in use that are not in the cache.
    private: u32,
}

impl Model {
    fn matched(&self, path: &[u32]) -> usize {
        (1..=path.len()).take_while(|&end| self.nodes.contains_key(&path[..end])).count()
    }

    fn hold(&mut self, path: &[u32]) {
        self.nodes.get_mut(path).unwrap().0 += 1;
    }

    fn release(&mut self, path: &[u32]) {
        self.clock += 1;
        let node = self.nodes.get_mut(path).unwrap();
        node.0 -= 1;
        node.1 = self.clock;
    }

    fn make_room(&mut self, capacity: u32) {
        if self.nodes.len() as u32 + self.private < capacity {
            return;
        }
        let idle = self.nodes.iter().filter(|(_, (holders, _))| *holders == 0);
        let oldest = idle.min_by_key(|(_, (_, released))| *released).map(|(path, _)| path.clone()).unwrap();
        let children =
            self.nodes.keys().filter(|path| path.len() > oldest.len() && path.starts_with(&oldest));
        assert_eq!(children.count(), 0, "evicted a block before its children");
        self.nodes.remove(&oldest);
    }
}

struct Holder {
    path: Path,
    pages: Vec<PageId>,
    inserted: usize,
}

#[derive(Debug, Clone)]
enum Op {
    Start(Path),
    /// Of the holder, so many more blocks have been computed.
    Compute(usize, usize),
    End(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::collection::vec(0_u32..3, 1..6).prop_map(Op::Start),
        8 => (any::<usize>(), 1_usize..5).prop_map(|(holder, blocks)| Op::Compute(holder, blocks)),
        5 => any::<usize>().prop_map(Op::End),
        1 => Just(Op::Clear),
    ]
}

fn names(path: &[u32]) -> Vec<BlockHash> {
    let key = ClusterKey::derive("test");
    let mut names = vec![key.root(&CacheScope::default())];
    for token in path {
        names.push(key.child(names[names.len() - 1], &[*token], &[]));
    }
    names
}

proptest! {
    /// Finds, shares and evicts exactly what a brute-force search over all paths would.
    #[test]
    fn caches_as_the_model_does(capacity in 5_u32..14, ops in prop::collection::vec(op(), 0..120)) {
        let mut blocks = Blocks::new(capacity, true, true);
        let mut model = Model::default();
        let mut holders: Vec<Holder> = Vec::new();
        for op in ops {
            match op {
                Op::Start(path) => {
                    let names = names(&path);
                    let found: Vec<_> = names[1..].iter().map_while(|name| blocks.find(*name)).collect();
                    prop_assert_eq!(found.len(), model.matched(&path));
                    let idle = found.iter().filter(|(_, idle)| *idle).count();
                    if (path.len() - found.len() + idle) as u32 > blocks.available() {
                        continue;
                    }
                    let mut pages: Vec<PageId> = found.iter().map(|(page, _)| *page).collect();
                    pages.iter().for_each(|page| blocks.retain(*page));
                    (1..=found.len()).for_each(|end| model.hold(&path[..end]));
                    while pages.len() < path.len() {
                        model.make_room(capacity);
                        model.private += 1;
                        pages.push(blocks.allocate().unwrap());
                    }
                    holders.push(Holder { inserted: found.len(), path, pages });
                }
                Op::Compute(at, count) if !holders.is_empty() => {
                    let at = at % holders.len();
                    let holder = &mut holders[at];
                    let names = names(&holder.path);
                    for index in holder.inserted..holder.path.len().min(holder.inserted + count) {
                        let own = holder.pages[index];
                        let path = &holder.path[..=index];
                        let twin = model.nodes.contains_key(path);
                        let page = blocks.insert(names[index], names[index + 1], index as u32, own);
                        prop_assert_eq!(page != own, twin);
                        holder.pages[index] = page;
                        holder.inserted = index + 1;
                        model.nodes.entry(path.to_vec()).or_default().0 += 1;
                        model.private -= 1;
                    }
                }
                Op::End(at) if !holders.is_empty() => {
                    let holder = holders.swap_remove(at % holders.len());
                    for (index, page) in holder.pages.iter().enumerate().rev() {
                        blocks.release(*page);
                        if index < holder.inserted {
                            model.release(&holder.path[..=index]);
                        } else {
                            model.private -= 1;
                        }
                    }
                }
                Op::Compute(..) | Op::End(_) => {}
                Op::Clear => {
                    blocks.clear();
                    model.nodes.retain(|_, (holders, _)| *holders > 0);
                }
            }
            let mut held = vec![0; capacity as usize];
            holders.iter().flat_map(|holder| &holder.pages).for_each(|page| held[page.0 as usize] += 1);
            prop_assert_eq!(blocks.check(&held), Ok(()));
            prop_assert_eq!(blocks.snapshot().len(), model.nodes.len());
            for (path, (count, _)) in &model.nodes {
                let found = blocks.find(names(path)[path.len()]);
                prop_assert_eq!(found.map(|(_, idle)| idle), Some(*count == 0));
            }
        }
    }
}

#[test]
fn without_a_cache_nothing_is_found() {
    let mut blocks = Blocks::new(2, false, true);
    let names = names(&[1]);
    let page = blocks.allocate().unwrap();
    assert_eq!(blocks.insert(names[0], names[1], 0, page), page);
    assert_eq!(blocks.find(names[1]), None);
    blocks.release(page);
    assert_eq!((blocks.available(), blocks.idle()), (2, 0));
}

#[test]
fn events_that_nobody_takes_are_dropped_and_the_loss_is_told() {
    let mut blocks = Blocks::new(1, true, true);
    let mut taken = Vec::new();
    for token in 0..100_000 {
        let names = names(&[token]);
        let page = blocks.allocate().unwrap();
        blocks.insert(names[0], names[1], 0, page);
        blocks.release(page);
    }
    assert!(!blocks.take_events(&mut taken));
    assert_eq!(taken, []);
    blocks.clear();
    assert!(blocks.take_events(&mut taken));
    assert_eq!(taken, [KvEvent::Cleared]);
}
