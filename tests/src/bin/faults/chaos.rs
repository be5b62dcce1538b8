//! Random faults for a while, the same ones for the same seed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use stator_tests::{Cluster, Service, Signal};

use crate::{
    answer::Answer,
    gauges,
    load::Load,
    rig::Rig,
    scenario::{Blow, Scenario, Target},
    verdict::Verdict,
};

/// Longest that a stopped process stays so.
const HANG_AT_MOST: Duration = Duration::from_secs(8);
/// Longest that a killed process stays away.
const AWAY_AT_MOST: Duration = Duration::from_secs(3);
/// Pause between two faults: one request may lose two engines but not a third, which would condemn it.
const PAUSE: std::ops::Range<Duration> = Duration::from_secs(4)..Duration::from_secs(9);
/// How long a drained process may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// One fault of the run.
#[derive(Debug, Clone, Copy)]
struct Fault {
    blow: Blow,
    target: Target,
    /// How long the target stays stopped or away.
    lasts: Duration,
    pause: Duration,
}

impl Fault {
    fn draw(rng: &mut StdRng) -> Self {
        let blow = *[Blow::Kill, Blow::Hang, Blow::Drain].choose(rng).expect("three blows");
        let on_nats = rng.random_bool(0.2);
        let target = if on_nats && blow != Blow::Drain {
            Target::NatsOfThree
        } else {
            Target::Service(*Service::ALL.choose(rng).expect("there are services"))
        };
        let at_most = if blow == Blow::Hang { HANG_AT_MOST } else { AWAY_AT_MOST };
        Self { blow, target, lasts: at_most.mul_f64(rng.random()), pause: rng.random_range(PAUSE) }
    }
}

/// Breaks one thing after the other for `time` under load; every answer must be what it is undisturbed.
pub async fn run(rig: &Rig, time: Duration, seed: u64, expected: &[Answer], logs: &Path) -> Verdict {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = rig.start(Scenario::new(Blow::Calm, Target::NatsOfThree)).await;
    let load = Load::start(&cluster.http(), &rig.mix, rig.clients);
    let began = load.under_way().await;
    let start = Instant::now();
    let mut wrong = Vec::new();
    while start.elapsed() < time {
        let fault = Fault::draw(&mut rng);
        println!("  {:>6.1} s  {fault:?}", start.elapsed().as_secs_f64());
        if !strike(&mut cluster, fault, &mut rng).await {
            wrong.push(format!("{fault:?}: the drained process did not end well"));
        }
        tokio::time::sleep(fault.pause).await;
        cluster.ready().await;
    }
    let outcomes = load.finish().await;
    let mut verdict = Verdict::of(&outcomes, expected, start);
    for text in began.err().map(|error| format!("{error:#}")).into_iter().chain(wrong) {
        verdict.remark(text);
    }
    verdict.leaks = gauges::leaks(&mut cluster).await;
    verdict.keep_logs_of(&cluster, &logs.join(format!("chaos-{seed}")));
    verdict
}

/// True unless a drain went wrong.
async fn strike(cluster: &mut Cluster, fault: Fault, rng: &mut StdRng) -> bool {
    let Target::Service(service) = fault.target else {
        let server = &mut cluster.nats[rng.random_range(0..3)];
        if fault.blow == Blow::Kill {
            server.kill();
            tokio::time::sleep(fault.lasts).await;
            server.resume();
        } else {
            server.signal(Signal::STOP);
            tokio::time::sleep(fault.lasts).await;
            server.signal(Signal::CONT);
        }
        return true;
    };
    // The first ingress holds the clients' connections: nobody can go on without it.
    let which = if service == Service::Ingress { 1 } else { rng.random_range(0..2) };
    let child = cluster.child(service, which);
    let mut well = true;
    match fault.blow {
        Blow::Hang => {
            child.signal(Signal::STOP);
            tokio::time::sleep(fault.lasts).await;
            child.signal(Signal::CONT);
            return true;
        }
        Blow::Drain => {
            child.signal(Signal::TERM);
            well = child.ended_within(DRAIN_WITHIN).await.is_some_and(|status| status.success());
        }
        _ => child.kill(),
    }
    tokio::time::sleep(fault.lasts).await;
    cluster.add(service);
    well
}
