//! Eight workers with caches, queues and running requests, simulated in steps of a millisecond.

use std::collections::{HashSet, VecDeque};

use super::*;

const WORKERS: usize = 8;
const PAGE: u32 = 16;
/// Prompt tokens that a worker computes in a millisecond.
const PREFILL_PER_MS: f64 = 2.0;
const DECODE_MS: u64 = 800;

#[derive(Default)]
struct Worker {
    cache: HashSet<u64>,
    waiting: VecDeque<(f64, Request)>,
    running: Vec<u64>,
    taken: usize,
}

#[derive(Clone)]
struct Request {
    chain: Vec<u64>,
}

impl Request {
    fn new(prompt: u64, shared: u64, number: u64, own: u64) -> Self {
        let shared = (0..shared).map(|at| prompt << 32 | at);
        Self { chain: shared.chain((0..own).map(|at| 1 << 63 | number << 8 | at)).collect() }
    }

    fn tokens(&self) -> u32 {
        self.chain.len() as u32 * PAGE
    }
}

impl Worker {
    fn overlap(&self, chain: &[u64]) -> u32 {
        chain.iter().take_while(|block| self.cache.contains(block)).count() as u32
    }

    fn candidate(&self, chain: &[u64]) -> Candidate {
        let waiting: f64 = self.waiting.iter().map(|(tokens, _)| tokens).sum();
        let requests = (self.waiting.len() + self.running.len()) as u32;
        Candidate {
            overlap_blocks: self.overlap(chain),
            prefill_tokens: waiting as u32,
            used_blocks: 4 * self.running.len() as u32,
            requests,
            session_rank: 0,
        }
    }

    fn take(&mut self, request: Request) {
        let uncached = request.chain.len() as u32 - self.overlap(&request.chain);
        self.waiting.push_back((f64::from(uncached * PAGE), request));
        self.taken += 1;
    }

    fn step(&mut self, now: u64) {
        self.running.retain(|end| *end > now);
        let mut budget = PREFILL_PER_MS;
        while let Some((left, _)) = self.waiting.front_mut() {
            let done = left.min(budget);
            (*left, budget) = (*left - done, budget - done);
            if *left > 0.0 {
                return;
            }
            if let Some((_, request)) = self.waiting.pop_front() {
                self.cache.extend(request.chain);
                self.running.push(now + DECODE_MS);
            }
        }
    }
}

#[derive(Debug)]
struct Outcome {
    /// Requests of the busiest worker over the mean.
    busiest: f64,
    /// Share of prompt blocks found cached.
    cached: f64,
}

/// `requests` that come every `every_ms`, each with one of `prompts` shared beginnings.
fn simulate(policy: Policy, prompts: u64, requests: u64, every_ms: u64) -> Outcome {
    let mut pricer = pricer(policy);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| Worker::default()).collect();
    let (mut found, mut asked) = (0, 0);
    for now in 0..requests * every_ms {
        if now % every_ms == 0 {
            let number = now / every_ms;
            let request =
                Request::new((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % prompts, 40, number, 4);
            let demand = Demand { prompt_tokens: request.tokens(), page_size: PAGE, session: false };
            let candidates: Vec<Candidate> = workers.iter().map(|w| w.candidate(&request.chain)).collect();
            let chosen = choose(&mut pricer, &demand, &candidates);
            found += candidates[chosen].overlap_blocks as usize;
            asked += request.chain.len();
            workers[chosen].take(request);
        }
        workers.iter_mut().for_each(|worker| worker.step(now));
    }
    let most = workers.iter().map(|worker| worker.taken).max().unwrap_or(0);
    Outcome { busiest: most as f64 * WORKERS as f64 / requests as f64, cached: found as f64 / asked as f64 }
}

#[test]
fn one_system_prompt_for_all_does_not_draw_all_to_one_worker() {
    let shared = simulate(Policy::Kv, 1, 2000, 20);
    assert!(shared.busiest <= 1.3, "busiest takes {} times the mean", shared.busiest);
    assert!(shared.cached > 0.85, "{} of the prompts were cached", shared.cached);
}

#[test]
fn many_system_prompts_find_more_in_caches_than_by_turns() {
    let (kv, turns) = (simulate(Policy::Kv, 64, 2000, 25), simulate(Policy::RoundRobin, 64, 2000, 25));
    assert!(kv.cached > turns.cached + 0.05, "{kv:?} against {turns:?}");
    assert!(kv.busiest <= 1.3, "{kv:?}");
}
