//! Plays one scenario on a cluster of its own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use stator_tests::{Cluster, Proxy, Service, Signal};

use crate::{
    answer::Answer,
    gauges,
    load::{Load, Outcome},
    prefill,
    rig::Rig,
    scenario::{Blow, HANG, OUTAGE, Scenario, Target},
    verdict::Verdict,
};

/// How long a drained process may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// The answers of an undisturbed cluster.
///
/// # Errors
/// If one of them is a failure.
pub async fn undisturbed(rig: &Rig) -> anyhow::Result<Vec<Answer>> {
    let cluster = rig.start(Scenario::new(Blow::Calm, Target::Nats)).await;
    let mut outcomes = Load::start(&cluster.http(), &rig.mix, rig.clients).finish().await;
    outcomes.sort_by_key(|outcome| outcome.request);
    let answers: anyhow::Result<Vec<Answer>> = outcomes.into_iter().map(|outcome| outcome.answer).collect();
    answers.with_context(|| format!("the undisturbed run failed\n{}", cluster.logs()))
}

/// Plays a scenario; logs of one that went wrong are kept under `logs`.
pub async fn play(rig: &Rig, scenario: Scenario, expected: &[Answer], logs: &Path) -> Verdict {
    let mut cluster = rig.start(scenario).await;
    let proxy = match (scenario.target, scenario.blow) {
        (Target::Service(service), Blow::Cut(_)) => Some(behind_proxy(&mut cluster, service).await),
        _ => None,
    };
    let load = Load::start(&cluster.http(), &rig.mix, rig.clients);
    let began = load.under_way().await;
    let blow = Instant::now();
    let struck = strike(&mut cluster, scenario, proxy.as_ref()).await;
    tokio::time::sleep_until((blow + scenario.aftermath()).into()).await;
    let outcomes = load.finish().await;

    let mut verdict = Verdict::of(&outcomes, expected, blow);
    verdict.bound = scenario.bound();
    for error in [began, struck].into_iter().filter_map(Result::err) {
        verdict.remark(format!("{error:#}"));
    }
    verdict.leaks = gauges::leaks(&mut cluster).await;
    verdict.prefill = allowance(&mut cluster, &outcomes, blow).await;
    if !verdict.clean() {
        let folder = logs.join(format!("{} {}", rig.name, scenario.name()).replace([' ', ':'], "-"));
        match cluster.keep_logs(&folder) {
            Ok(()) => verdict.remark(format!("logs: {}", folder.display())),
            Err(error) => verdict.remark(format!("logs not kept: {error}")),
        }
    }
    verdict
}

async fn behind_proxy(cluster: &mut Cluster, service: Service) -> Proxy {
    let proxy = Proxy::to(cluster.nats[0].address()).await.expect("loopback has a free port");
    cluster.add_over(service, &format!("nats://{}", proxy.address()));
    cluster.ready().await;
    proxy
}

async fn strike(cluster: &mut Cluster, scenario: Scenario, proxy: Option<&Proxy>) -> anyhow::Result<()> {
    match (scenario.blow, scenario.target) {
        (Blow::Calm, _) => {}
        (Blow::Kill, Target::Service(service)) => cluster.child(service, 1).kill(),
        (Blow::Hang, Target::Service(service)) => {
            cluster.child(service, 1).signal(Signal::STOP);
            tokio::time::sleep(HANG).await;
            cluster.child(service, 1).signal(Signal::CONT);
        }
        (Blow::Drain, Target::Service(service)) => {
            let child = cluster.child(service, 1);
            child.signal(Signal::TERM);
            let status = child.ended_within(DRAIN_WITHIN).await.context("the drained process did not end")?;
            anyhow::ensure!(status.success(), "the drained process ended with {status}");
        }
        (Blow::Cut(time), _) => {
            let proxy = proxy.context("nothing to cut")?;
            proxy.cut();
            tokio::time::sleep(time).await;
            proxy.heal();
        }
        (Blow::Hang, Target::Nats | Target::NatsOfThree) => {
            cluster.nats[0].signal(Signal::STOP);
            tokio::time::sleep(HANG).await;
            cluster.nats[0].signal(Signal::CONT);
        }
        (Blow::Kill, Target::Nats | Target::NatsOfThree) => cluster.nats[0].kill(),
        (Blow::Restart, _) | (Blow::Drain, Target::Nats | Target::NatsOfThree) => {
            cluster.nats[0].kill();
            tokio::time::sleep(OUTAGE).await;
            cluster.nats[0].resume();
        }
    }
    Ok(())
}

/// What one undisturbed engine takes to prefill the journals that had to be sent anew.
async fn allowance(cluster: &mut Cluster, outcomes: &[Outcome], blow: Instant) -> Duration {
    let journals = prefill::journals(outcomes, blow);
    let again = gauges::sent_again(cluster).await.min(journals.len());
    if again == 0 {
        return Duration::ZERO;
    }
    let mean = journals.iter().sum::<usize>() / journals.len();
    prefill::time(cluster, again, mean).await.unwrap_or_default()
}
