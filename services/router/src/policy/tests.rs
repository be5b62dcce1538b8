use super::*;

mod hotspot;

fn weights() -> Weights {
    crate::settings::RouterSettings::default().weights()
}

fn pricer(policy: Policy) -> Pricer {
    Pricer::new(policy, weights(), 7)
}

const DEMAND: Demand = Demand { prompt_tokens: 640, page_size: 16, session: false };

fn choose(pricer: &mut Pricer, demand: &Demand, candidates: &[Candidate]) -> usize {
    let mut costs = Vec::new();
    pricer.price(demand, candidates.iter().copied(), &mut costs);
    pricer.pick(&costs).unwrap()
}

fn cached(blocks: u32) -> Candidate {
    Candidate { overlap_blocks: blocks, ..Candidate::default() }
}

fn running(requests: u32) -> Candidate {
    Candidate { requests, ..Candidate::default() }
}

#[test]
fn the_longest_prefix_wins_among_equally_burdened_engines() {
    let mut kv = pricer(Policy::Kv);
    assert_eq!(choose(&mut kv, &DEMAND, &[cached(10), cached(30), cached(0)]), 1);
}

#[test]
fn a_prefix_is_not_worth_a_longer_wait_than_computing_it() {
    let mut kv = pricer(Policy::Kv);
    let waits = Candidate { prefill_tokens: 2000, ..cached(30) };
    assert_eq!(choose(&mut kv, &DEMAND, &[waits, cached(0)]), 1);
}

#[test]
fn equal_engines_are_equally_likely() {
    let mut kv = pricer(Policy::Kv);
    let mut hits = [0; 4];
    for _ in 0..4000 {
        hits[choose(&mut kv, &DEMAND, &[cached(5); 4])] += 1;
    }
    assert!(hits.iter().all(|hits| (850..1150).contains(hits)), "{hits:?}");
}

#[test]
fn temperature_spreads_over_low_costs_and_spares_high_ones() {
    let mut warm = Pricer::new(Policy::Kv, Weights { temperature: 0.3, ..weights() }, 7);
    let mut hits = [0; 3];
    for _ in 0..3000 {
        hits[choose(&mut warm, &DEMAND, &[cached(40), cached(36), cached(0)])] += 1;
    }
    assert!(hits[0] > hits[1] && hits[1] > 500 && hits[2] < 300, "{hits:?}");
}

#[test]
fn round_robin_takes_turns_and_least_loaded_the_idlest() {
    let mut turns = pricer(Policy::RoundRobin);
    let taken: Vec<usize> =
        (0..5).map(|_| choose(&mut turns, &DEMAND, &[running(9), running(0), running(0)])).collect();
    assert_eq!(taken, [0, 1, 2, 0, 1]);
    assert_eq!(choose(&mut pricer(Policy::LeastLoaded), &DEMAND, &[running(2), running(1), running(3)]), 1);
}

#[test]
fn power_of_two_never_takes_the_busiest() {
    let mut two = pricer(Policy::PowerOfTwo);
    let candidates = [running(1), running(9), running(1)];
    assert!(
        (0..900).all(|_| choose(&mut two, &DEMAND, &candidates) != 1),
        "one of two distinct ones is idler"
    );
    let one = [running(3)];
    assert_eq!(choose(&mut two, &DEMAND, &one), 0);
}

#[test]
fn a_session_stays_where_it_is_until_that_engine_is_far_busier() {
    let demand = Demand { session: true, ..DEMAND };
    let ranked = |requests, session_rank: u64| Candidate {
        requests,
        session_rank: session_rank << 56,
        ..Candidate::default()
    };
    let mut any = pricer(Policy::RoundRobin);
    assert_eq!(choose(&mut any, &demand, &[ranked(3, 10), ranked(4, 99), ranked(3, 50)]), 1);
    assert_eq!(choose(&mut any, &demand, &[ranked(3, 10), ranked(14, 99), ranked(3, 50)]), 2);
}

#[test]
fn excluded_candidates_are_never_picked() {
    let mut kv = pricer(Policy::Kv);
    assert_eq!(kv.pick(&[f64::INFINITY, 3.0, f64::INFINITY]), Some(1));
    assert_eq!(kv.pick(&[f64::INFINITY]), None);
}
