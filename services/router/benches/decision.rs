//! What a routing decision costs among 1,000 engines: prompt to block ids, matching, pricing, picking, explaining.
//!
//! Prints the distribution of whole decisions before the benchmarks run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::suspects::Suspects;
use divan::{Bencher, black_box};
use messages::{
    InstanceId, Pool, Role, TokenIds,
    block::ClusterKey,
    kv::KvSnapshot,
    lease::{Lease, State},
    load::Load,
    submit::{Routing, Sampling, Submit},
};
use router::{
    RouterSettings,
    chain::Chain,
    deployment::{Deployment, Wish},
    policy::{Candidate, Demand, Policy, Pricer},
};

const ENGINES: usize = 1000;
/// Tokens of a prompt: 64 blocks.
const PROMPT: u32 = 1024;
/// System prompts of half that length, each cached by a tenth of the engines.
const SYSTEMS: u32 = 10;
/// Times that each request is decided: other processes of the machine fall upon single ones.
const VISITS: usize = 21;

fn main() {
    figures();
    divan::main();
}

struct World {
    key: ClusterKey,
    lease: Arc<Lease>,
    deployment: Arc<Deployment>,
    suspects: Suspects,
}

fn lease(n: usize) -> Arc<Lease> {
    Arc::new(Lease {
        role: Role::Decode,
        pool: Pool::of_model("m", "00"),
        instance: format!("decode-{n:012}").parse().expect("a name"),
        state: State::Ready,
        version: String::new(),
        host: String::new(),
        pid: 0,
        started_ms: 0,
        admin: None,
        card: None,
        numerics_class: None,
        kv_tokens: None,
        page_size: Some(16),
    })
}

fn load(lease: &Lease, n: usize) -> Load {
    Load {
        instance: lease.instance.clone(),
        number: 1,
        running: n as u32 * 7 % 40,
        queued: 0,
        max_running: 64,
        max_queued: 512,
        blocks_used: n as u32 * 11 % 900,
        blocks_cached: 0,
        blocks_total: 2000,
        pending_prefill_tokens: n as u32 * 13 % 3000,
        step_us: 10_000,
        prefill_token_ns: 500_000,
        seen: Vec::new(),
        kv: None,
        alone: false,
        started: Vec::new(),
    }
}

fn submit(system: u32, number: u32) -> Submit {
    let half = PROMPT / 2;
    let prompt: TokenIds =
        (0..half).map(|at| system * half + at).chain((0..half).map(|at| number ^ at)).collect();
    Submit {
        run: None,
        pool: Pool::of_model("m", "00"),
        prompt,
        choices: Vec::new(),
        sampling: Sampling::default(),
        max_tokens: 100,
        score_prompt_from: None,
        priority: 0,
        cache_salt: None,
        dispatch: None,
        prefill: None,
        routing: Routing::default(),
        tokenizer: "tokenizer-1".parse().expect("a name"),
        ingress: "ingress-1".parse().expect("a name"),
        avoid: Vec::new(),
        alone: false,
    }
}

impl World {
    fn fill() -> Self {
        let key = ClusterKey::derive("bench");
        let me: InstanceId = "router-1".parse().expect("a name");
        let deployment = Deployment::new(Pool::of_model("m", "00"), &RouterSettings::default());
        let leases: Vec<Arc<Lease>> = (0..ENGINES).map(lease).collect();
        let mut state = deployment.lock();
        state.decode.sync(&leases);
        for (n, lease) in leases.iter().enumerate() {
            state.decode.heard_load(load(lease, n), &me, Instant::now());
            let chain = Chain::of(&key, lease, &submit(n as u32 % SYSTEMS, n as u32));
            let blocks = chain.blocks.into_iter().collect();
            let snapshot = KvSnapshot { instance: lease.instance.clone(), epoch: 1, next: 0, blocks };
            state.decode.take_snapshot(&snapshot);
        }
        drop(state);
        Self { key, lease: leases[0].clone(), deployment, suspects: Suspects::default() }
    }

    /// One decision, from the prompt's tokens on; the engine confirms it at once.
    fn decide(&self, submit: &Submit, number: u64) {
        let chain = Chain::of(&self.key, &self.lease, submit);
        let wish = Wish {
            submit,
            chain: &chain.blocks,
            page_size: chain.page_size,
            tried: &[],
            suspects: &self.suspects,
            show_all: false,
        };
        let mut state = self.deployment.lock();
        if let Some(choice) = black_box(state.choose(&wish, number, Instant::now())) {
            state.refused(&choice.engine, None, number);
        }
    }
}

fn figures() {
    let world = World::fill();
    let requests: Vec<Submit> = (0..1000).map(|n| submit(n % SYSTEMS, 1_000_000 + 77 * n)).collect();
    let mut visits: Vec<Vec<Duration>> = requests.iter().map(|_| Vec::with_capacity(VISITS)).collect();
    for number in 0..VISITS as u64 {
        for (request, times) in requests.iter().zip(&mut visits) {
            let began = Instant::now();
            world.decide(request, number);
            times.push(began.elapsed());
        }
    }
    println!(
        "decision among {ENGINES} engines, wall clock: {}",
        percentiles(visits.iter().flatten().copied().collect())
    );
    let medians = visits.iter_mut().map(|times| {
        times.sort_unstable();
        times[VISITS / 2]
    });
    println!(
        "decision among {ENGINES} engines, each its median of {VISITS}: {}",
        percentiles(medians.collect())
    );
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}", at(0.5), at(0.99), at(0.999))
}

#[divan::bench]
fn decide(bencher: Bencher<'_, '_>) {
    let world = World::fill();
    let request = submit(3, 123_456);
    bencher.bench_local(|| world.decide(&request, 1));
}

#[divan::bench]
fn block_ids(bencher: Bencher<'_, '_>) {
    let (key, lease, request) = (ClusterKey::derive("bench"), lease(0), submit(3, 123_456));
    bencher.bench_local(|| Chain::of(&key, &lease, &request));
}

#[divan::bench(args = Policy::ALL)]
fn price_and_pick(bencher: Bencher<'_, '_>, policy: Policy) {
    let mut pricer = Pricer::new(policy, RouterSettings::default().weights(), 1);
    let candidates: Vec<Candidate> = (0..1000u32)
        .map(|n| Candidate {
            overlap_blocks: n % 60,
            prefill_tokens: n * 7 % 3000,
            used_blocks: n * 11 % 900,
            requests: n * 13 % 40,
            session_rank: 0,
        })
        .collect();
    let demand = Demand { prompt_tokens: PROMPT, page_size: 16, session: false };
    let mut costs = Vec::new();
    bencher.bench_local(|| {
        pricer.price(&demand, &candidates, &mut costs);
        pricer.pick(&costs)
    });
}
