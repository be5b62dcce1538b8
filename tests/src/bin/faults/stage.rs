//! Plays one scenario on a cluster of its own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use stator_tests::{Child, Cluster, Proxy, Service, Signal};

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
/// The same once it was told a second time.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Time for a drain to begin.
const DRAIN_BEGINS: Duration = Duration::from_millis(300);

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

/// Plays a scenario; the logs of one that went wrong are kept under `logs`.
pub async fn play(rig: &Rig, scenario: Scenario, expected: &[Answer], logs: &Path) -> Verdict {
    let mut cluster = rig.start(scenario).await;
    let proxy = match (scenario.target, scenario.blow) {
        (Target::Service(service), Blow::Cut(_)) => Some(behind_proxy(&mut cluster, service).await),
        _ => None,
    };
    let load = Load::start(&cluster.http(), &rig.mix, rig.clients);
    let mut began = load.under_way().await;
    if scenario.target == Target::Service(Service::Decode)
        && !gauges::second_engine_is_busy(&mut cluster).await
    {
        began = Err(anyhow::anyhow!("the second engine had nothing to do"));
    }
    let blow = Instant::now();
    if scenario.aftermath().is_zero() {
        load.ask_no_more();
    }
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
    let folder = format!("{} {}", rig.name, scenario.name()).replace([' ', ':', ','], "-");
    verdict.keep_logs_of(&cluster, &logs.join(folder));
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
        (Blow::Drain, Target::Service(service)) => drain(cluster.child(service, 1), DRAIN_WITHIN).await?,
        (Blow::DrainNow, Target::Service(service)) => {
            let child = cluster.child(service, 1);
            child.signal(Signal::TERM);
            tokio::time::sleep(DRAIN_BEGINS).await;
            drain(child, STOP_WITHIN).await?;
        }
        (blow, Target::Only(service)) => {
            let child = cluster.child(service, 0);
            if blow == Blow::Drain {
                drain(child, DRAIN_WITHIN).await?
            } else {
                child.kill()
            }
            cluster.add(service);
        }
        (Blow::Cut(time), _) => {
            let proxy = proxy.context("nothing to cut")?;
            proxy.cut();
            tokio::time::sleep(time).await;
            proxy.heal();
        }
        (Blow::Hang, Target::Nats | Target::NatsOfThree) => {
            let server = cluster.nats_of_ingress();
            cluster.nats[server].signal(Signal::STOP);
            tokio::time::sleep(HANG).await;
            cluster.nats[server].signal(Signal::CONT);
        }
        (Blow::Kill, Target::Nats | Target::NatsOfThree) => {
            let server = cluster.nats_of_ingress();
            cluster.nats[server].kill();
        }
        (Blow::Restart | Blow::Drain | Blow::DrainNow, _) => {
            cluster.nats[0].kill();
            tokio::time::sleep(OUTAGE).await;
            cluster.nats[0].resume();
        }
    }
    Ok(())
}

async fn drain(child: &mut Child, within: Duration) -> anyhow::Result<()> {
    child.signal(Signal::TERM);
    let status = child.ended_within(within).await.context("the drained process did not end")?;
    anyhow::ensure!(status.success(), "the drained process ended with {status}");
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
