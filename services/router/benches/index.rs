//! What the index costs: 1,000 workers with 10,000 blocks each, some of them shared by all, some by a few.
//!
//! Prints memory a block and the distribution of query times before the benchmarks run.

mod spread;

use std::{
    sync::{Mutex, OnceLock},
    time::Instant,
};

use divan::{Bencher, black_box, counter::ItemsCount};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use router::index::{Index, Matches, Worker};

const WORKERS: usize = 1000;
const BLOCKS: usize = 10_000;
/// Blocks of a query.
const QUERY: usize = 64;
/// Chains that every worker holds, and chains that ten workers each hold.
const COMMON_CHAINS: usize = 20;
const GROUP_CHAINS: usize = 20;
/// Different queries.
const QUERIES: usize = 10_000;

fn main() {
    figures();
    divan::main();
}

/// A filled index and the chains in it.
struct World {
    index: Index,
    workers: Vec<Worker>,
    common: Vec<Vec<u64>>,
    group: Vec<Vec<u64>>,
    own: Vec<Vec<u64>>,
}

impl World {
    fn fill() -> Self {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut index = Index::default();
        let workers: Vec<Worker> = std::iter::from_fn(|| index.enlist()).take(WORKERS).collect();
        let chain = |rng: &mut SmallRng| -> Vec<u64> { (0..QUERY).map(|_| rng.random()).collect() };
        let common: Vec<Vec<u64>> = (0..COMMON_CHAINS).map(|_| chain(&mut rng)).collect();
        let (mut group, mut own) = (Vec::new(), Vec::new());
        for (place, worker) in workers.iter().enumerate() {
            if place % 10 == 0 {
                group.extend((0..GROUP_CHAINS).map(|_| chain(&mut rng)));
            }
            let shared = common.iter().chain(&group[group.len() - GROUP_CHAINS..]);
            index.add_all(*worker, shared.flatten().copied());
            let left = BLOCKS / QUERY - COMMON_CHAINS - GROUP_CHAINS;
            for _ in 0..left {
                own.push(chain(&mut rng));
                index.add_all(*worker, own[own.len() - 1].iter().copied());
            }
        }
        Self { index, workers, common, group, own }
    }

    /// A third each: known to all, to ten, to one; half of the latter two go on from a common beginning.
    fn query(&self, rng: &mut SmallRng) -> Vec<u64> {
        let pick = |chains: &[Vec<u64>], rng: &mut SmallRng| chains.choose(rng).cloned().unwrap_or_default();
        let mut query = match rng.random_range(0..3) {
            0 => return pick(&self.common, rng),
            1 => pick(&self.group, rng),
            _ => pick(&self.own, rng),
        };
        if rng.random() {
            query[..QUERY / 2].copy_from_slice(&pick(&self.common, rng)[..QUERY / 2]);
        }
        query
    }
}

fn world() -> &'static Mutex<World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD.get_or_init(|| Mutex::new(World::fill()))
}

fn figures() {
    let before = resident();
    let began = Instant::now();
    let world = world().lock().expect("nobody panicked");
    let took = began.elapsed();
    // The chains themselves are kept beside the index, eight bytes a block.
    let chains = 8 * QUERY * (world.common.len() + world.group.len() + world.own.len());
    let bytes = resident().saturating_sub(before).saturating_sub(chains) as f64;
    let (blocks, pairs) = (world.index.blocks(), world.index.pairs());
    println!("{blocks} blocks, {pairs} pairs of worker and block, filled in {took:.1?}");
    println!("{:.1} bytes a block, {:.1} a pair", bytes / blocks as f64, bytes / pairs as f64);

    let mut rng = SmallRng::seed_from_u64(2);
    let queries: Vec<Vec<u64>> = (0..QUERIES).map(|_| world.query(&mut rng)).collect();
    let mut matches = Matches::default();
    spread::print(&format!("query of {QUERY} blocks"), &queries, |_, query| {
        world.index.matches(black_box(query), &mut matches);
    });
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// A worker evicts a chain and stores another, again and again.
#[divan::bench]
fn block_events(bencher: Bencher<'_, '_>) {
    let mut world = world().lock().expect("nobody panicked");
    let mut rng = SmallRng::seed_from_u64(3);
    bencher.counter(ItemsCount::new(2 * QUERY)).bench_local(|| {
        let world = &mut *world;
        let worker = world.workers[rng.random_range(0..WORKERS)];
        let place = rng.random_range(0..world.own.len());
        for block in world.own[place].iter().rev() {
            black_box(world.index.remove(worker, *block));
        }
        for block in &mut world.own[place] {
            *block = rng.random();
            black_box(world.index.add(worker, *block));
        }
    });
}

#[divan::bench]
fn find_matches(bencher: Bencher<'_, '_>) {
    let world = world().lock().expect("nobody panicked");
    let mut rng = SmallRng::seed_from_u64(4);
    let queries: Vec<Vec<u64>> = (0..10_000).map(|_| world.query(&mut rng)).collect();
    let mut next = queries.iter().cycle();
    let mut matches = Matches::default();
    bencher.bench_local(|| world.index.matches(next.next().map_or(&[], Vec::as_slice), &mut matches));
}
