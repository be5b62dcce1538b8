//! What a routing decision costs among 1,000 engines: prompt to block ids, matching, pricing, picking, explaining.
//!
//! Prints the distribution of whole decisions before the benchmarks run.

mod spread;

use std::{sync::Arc, time::Instant};

use actors::suspects::Suspects;
use divan::{Bencher, black_box};
use messages::{
    InstanceId, Pool, Role, TokenIds,
    block::ClusterKey,
    kv::KvSnapshot,
    lease::{Lease, State},
    load::Load,
    submit::Submit,
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
    let instance = format!("decode-{n:012}").parse().expect("a name");
    let lease = Lease::new(Role::Decode, Pool::of_model("m", "00"), instance);
    Arc::new(Lease { state: State::Ready, page_size: Some(16), ..lease })
}

fn load(lease: &Lease, n: usize) -> Load {
    Load {
        running: n as u32 * 7 % 40,
        max_running: 64,
        max_queued: 512,
        blocks_used: n as u32 * 11 % 900,
        blocks_total: 2000,
        pending_prefill_tokens: n as u32 * 13 % 3000,
        step_us: 10_000,
        prefill_token_ns: 500_000,
        ..Load::new(lease.instance.clone())
    }
}

fn submit(system: u32, number: u32) -> Submit {
    let half = PROMPT / 2;
    let prompt: TokenIds =
        (0..half).map(|at| system * half + at).chain((0..half).map(|at| number ^ at)).collect();
    let [tokenizer, ingress] = ["tokenizer-1", "ingress-1"].map(|name| name.parse().expect("a name"));
    let request = Submit::new(Pool::of_model("m", "00"), prompt, tokenizer, ingress);
    Submit { max_tokens: 100, ..request }
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
            alone: false,
            submit,
            chains: std::slice::from_ref(&chain),
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
    spread::print(&format!("decision among {ENGINES} engines"), &requests, |visit, request| {
        world.decide(request, visit as u64);
    });
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
        pricer.price(&demand, candidates.iter().copied(), &mut costs);
        pricer.pick(&costs)
    });
}
