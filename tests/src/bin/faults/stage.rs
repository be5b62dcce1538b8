//! Plays one scenario on a cluster of its own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::json;
use stator_tests::{Child, Cluster, Network, Proxy, Service, Signal, cluster::stator, free_port, http::Http};

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
    let roads = match (scenario.target, scenario.blow) {
        (Target::Service(service), Blow::Off(..)) => behind_proxies(&mut cluster, service).await,
        _ => Vec::new(),
    };
    let load = Load::start(&cluster.http(), &rig.mix, rig.clients);
    let mut began = load.under_way().await;
    if let Target::Service(role @ (Service::Prefill | Service::Decode)) = scenario.target
        && !gauges::second_is_busy(&mut cluster, role).await
    {
        began = Err(anyhow::anyhow!("the second {} had nothing to do", role.name()));
    }
    let blow = Instant::now();
    if scenario.aftermath().is_zero() {
        load.ask_no_more();
    }
    let struck = strike(&mut cluster, scenario, &roads).await;
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

/// Adds an engine that is reached, by NATS and by prefill engines, through proxies.
async fn behind_proxies(cluster: &mut Cluster, service: Service) -> Vec<Proxy> {
    let pages = format!("127.0.0.1:{}", free_port());
    let mut roads = Vec::new();
    for target in [cluster.nats[0].address(), pages.clone()] {
        roads.push(Proxy::to(target).await.expect("loopback has a free port"));
    }
    let reached_at = roads[1].address().to_string();
    let flags = ["--kv-transport", "tcp", "--kv-listen", &pages, "--kv-advertise", &reached_at];
    let flags = flags.map(str::to_owned);
    cluster.add_over(service, &format!("nats://{}", roads[0].address()), &flags);
    cluster.ready().await;
    roads
}

async fn strike(cluster: &mut Cluster, scenario: Scenario, roads: &[Proxy]) -> anyhow::Result<()> {
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
        (Blow::Drain, Target::Only(service)) => {
            drain(cluster.child(service, 0), DRAIN_WITHIN).await?;
            cluster.add(service);
        }
        (Blow::Kill, Target::Only(service)) => {
            cluster.child(service, 0).kill();
            cluster.add(service);
        }
        (Blow::Off(network, time), Target::Service(_)) => {
            roads.iter().for_each(|road| road.becomes(network));
            tokio::time::sleep(time).await;
            roads.iter().for_each(|road| road.becomes(Network::Up));
        }
        (Blow::DrainByAdmin, Target::Service(service)) => {
            let address = cluster.admin_address(service, 1);
            let child = cluster.child(service, 1);
            let reply = Http::at(&address).post("/admin/drain?wait=true", &json!({})).await?;
            anyhow::ensure!(reply.json()["safe_to_stop"] == true, "the drain was answered: {}", reply.body);
            ended(child, STOP_WITHIN).await?;
        }
        (Blow::DrainByCommand, Target::Service(service)) => {
            let instance = cluster.instance(service, 1);
            let url = cluster.nats[0].url();
            let child = cluster.child(service, 1);
            let said = command(&["drain", &instance, "--nats-url", &url]).await?;
            anyhow::ensure!(said.contains("\"safe_to_stop\":true"), "stator drain said: {said}");
            ended(child, STOP_WITHIN).await?;
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
        (Blow::Restart, Target::Nats) => {
            cluster.nats[0].kill();
            tokio::time::sleep(OUTAGE).await;
            cluster.nats[0].resume();
        }
        (blow, target) => anyhow::bail!("nothing does {blow:?} to {target:?}"),
    }
    Ok(())
}

async fn drain(child: &mut Child, within: Duration) -> anyhow::Result<()> {
    child.signal(Signal::TERM);
    ended(child, within).await
}

/// What a command of the binary prints.
async fn command(arguments: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(stator()).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(DRAIN_WITHIN, output).await.context("the command did not end")??;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn ended(child: &mut Child, within: Duration) -> anyhow::Result<()> {
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
