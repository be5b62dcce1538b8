//! What pricing and picking among 1,000 engines costs.

use divan::Bencher;
use router::{
    RouterSettings,
    policy::{Candidate, Demand, Policy, Pricer},
};

fn main() {
    divan::main();
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
    let demand = Demand { prompt_tokens: 1024, page_size: 16, session: false };
    let mut costs = Vec::new();
    bencher.bench_local(|| {
        pricer.price(&demand, &candidates, &mut costs);
        pricer.pick(&costs)
    });
}
