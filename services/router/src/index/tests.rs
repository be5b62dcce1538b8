use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// The same by brute force.
#[derive(Default)]
struct Model(HashMap<Worker, HashSet<u64>>);

impl Model {
    fn depth(&self, worker: Worker, chain: &[u64]) -> usize {
        chain.iter().take_while(|block| self.0[&worker].contains(block)).count()
    }
}

#[derive(Debug, Clone)]
enum Act {
    Add { worker: usize, chain: u64, blocks: u64 },
    Remove { worker: usize, chain: u64, at: u64 },
    Replace { worker: usize },
    Sweep { parts: usize },
}

const WORKERS: usize = 90;
const LENGTH: u64 = 20;

/// Ids spread like those of a hash.
fn block(chain: u64, at: u64) -> u64 {
    (chain * LENGTH + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn act() -> impl Strategy<Value = Act> {
    let (worker, chain) = (0..WORKERS, 0..4u64);
    prop_oneof![
        8 => (worker.clone(), chain.clone(), 1..=LENGTH)
            .prop_map(|(worker, chain, blocks)| Act::Add { worker, chain, blocks }),
        3 => (worker.clone(), chain, 0..LENGTH).prop_map(|(worker, chain, at)| Act::Remove { worker, chain, at }),
        1 => worker.prop_map(|worker| Act::Replace { worker }),
        1 => (0..300usize).prop_map(|parts| Act::Sweep { parts }),
    ]
}

proptest! {
    #[test]
    fn depths_are_those_of_a_brute_force_model(acts in proptest::collection::vec(act(), 1..400)) {
        let (mut index, mut model) = (Index::default(), Model::default());
        let mut workers: Vec<Worker> = (0..WORKERS).map(|_| index.enlist().unwrap()).collect();
        workers.iter().for_each(|worker| { model.0.insert(*worker, HashSet::new()); });
        for act in acts {
            match act {
                Act::Add { worker, chain, blocks } => for at in 0..blocks {
                    let added = model.0.get_mut(&workers[worker]).unwrap().insert(block(chain, at));
                    prop_assert_eq!(index.add(workers[worker], block(chain, at)), added);
                },
                Act::Remove { worker, chain, at } => {
                    let removed = model.0.get_mut(&workers[worker]).unwrap().remove(&block(chain, at));
                    prop_assert_eq!(index.remove(workers[worker], block(chain, at)), removed);
                }
                Act::Replace { worker } => {
                    model.0.remove(&workers[worker]);
                    workers[worker] = index.renew(workers[worker]);
                    model.0.insert(workers[worker], HashSet::new());
                }
                Act::Sweep { parts } => for _ in 0..parts { index.sweep(); },
            }
        }
        let mut matches = Matches::default();
        for chain in 0..4 {
            let chain: Vec<u64> = (0..LENGTH).map(|at| block(chain, at)).collect();
            index.matches(&chain, &mut matches);
            for worker in &workers {
                prop_assert_eq!(matches.depth(*worker) as usize, model.depth(*worker, &chain));
            }
        }
        while index.sweep() {}
        prop_assert_eq!(index.pairs(), model.0.values().map(HashSet::len).sum::<usize>());
        let distinct: HashSet<&u64> = model.0.values().flatten().collect();
        prop_assert_eq!(index.blocks(), distinct.len());
    }
}

#[test]
fn numbers_of_dismissed_workers_are_used_again_once_they_hold_nothing() {
    let mut index = Index::default();
    let first = index.enlist().unwrap();
    index.add(first, 7);
    let second = index.renew(first);
    assert_ne!(first, second, "the map still says that the first holds a block");
    while index.sweep() {}
    assert_eq!(index.blocks(), 0);
    assert_eq!(index.enlist(), Some(first));
}

#[test]
fn an_index_takes_as_many_workers_as_it_has_numbers() {
    let mut index = Index::default();
    let workers: Vec<Worker> = std::iter::from_fn(|| index.enlist()).collect();
    assert_eq!(workers.len(), MAX_WORKERS);
    index.dismiss(workers[3]);
    assert_eq!(index.enlist(), Some(workers[3]));
}

#[test]
fn an_empty_prompt_matches_nobody() {
    let mut index = Index::default();
    let worker = index.enlist().unwrap();
    index.add(worker, 7);
    let mut matches = Matches::default();
    index.matches(&[], &mut matches);
    assert_eq!(matches.depth(worker), 0);
}
