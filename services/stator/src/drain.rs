//! `stator drain`: asks one instance to go, and waits until nobody would miss it.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use futures_util::StreamExt;
use messages::{
    InstanceId, codec,
    control::{Control, Drained, Pong},
    lease::{Lease, State},
    subject,
};

use crate::bus::{Cluster, ClusterArgs};

/// How long the bucket of leases may take to answer.
const LOOK_FOR: Duration = Duration::from_secs(5);
/// How long an answer is waited for before it is looked whether the instance is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct DrainArgs {
    /// The instance, such as decode-1f0c9a3e5b7d; without one, the live instances are listed
    instance: Option<InstanceId>,
    /// Do not wait for running work: hand it back
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub fn run(args: DrainArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(drain(args))
}

async fn drain(args: DrainArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    let all = live(&cluster).await?;
    let Some(instance) = args.instance else {
        for lease in &all {
            let name = lease.card.as_ref().map_or("-", |card| card.name.as_str());
            println!("{}\t{:?}\t{}\tpid {}\t{name}", lease.instance, lease.state, lease.host, lease.pid);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let lease = all
        .iter()
        .find(|lease| lease.instance == instance)
        .with_context(|| format!("no live instance '{instance}'; `stator drain` lists those there are"))?;
    let to = subject::instance_control(&cluster.namespace, lease.role, &lease.pool, &instance);
    let inbox = cluster.client.new_inbox();
    let mut answers = cluster.client.subscribe(inbox.clone()).await?;
    let body = codec::encode(&Control::Drain { now: args.now });
    cluster.client.publish_with_reply(to.clone(), inbox.clone(), body.clone()).await?;
    cluster.client.flush().await?;
    eprintln!("{instance} was asked to drain");
    let mut is_gone = false;
    let mut knew_nothing = false;
    loop {
        if let Ok(Some(answer)) = tokio::time::timeout(LOOK_AGAIN, answers.next()).await {
            let Drained { safe_to_stop } = codec::decode(&answer.payload)
                .with_context(|| format!("{instance} does not listen: is it hung, or gone just now?"))?;
            println!("{}", serde_json::json!({"instance": instance, "safe_to_stop": safe_to_stop}));
            return Ok(ExitCode::SUCCESS);
        }
        anyhow::ensure!(!is_gone, "{instance} went away without a word: what it held is repaired by others");
        // Its answer may come while leases are read: once more it is waited for.
        is_gone = live(&cluster).await?.iter().all(|lease| lease.instance != instance);
        let knows_nothing = !is_gone && knows_nothing(&cluster, &to).await;
        if knew_nothing && knows_nothing {
            cluster.client.publish_with_reply(to.clone(), inbox.clone(), body.clone()).await?;
        }
        knew_nothing = knows_nothing && !knew_nothing;
    }
}

/// Whether the instance says that it does not drain. It reads in order, so if it still says so a while later it never heard that
/// it is to; told twice it would stop at once.
async fn knows_nothing(cluster: &Cluster, to: &str) -> bool {
    let ping = codec::encode(&Control::Ping { request: None, run: None });
    let asked = cluster.client.request(to.to_owned(), ping);
    let Ok(Ok(answer)) = tokio::time::timeout(LOOK_AGAIN, asked).await else { return false };
    codec::decode(&answer.payload).is_ok_and(|pong: Pong| pong.state == State::Ready)
}

/// Every live instance, soon.
async fn live(cluster: &Cluster) -> anyhow::Result<Vec<Lease>> {
    tokio::time::timeout(LOOK_FOR, leases(cluster)).await.context("no answer from jetstream")?
}

/// Every live instance, by name.
pub async fn leases(cluster: &Cluster) -> anyhow::Result<Vec<Lease>> {
    let jetstream = async_nats::jetstream::new(cluster.client.clone());
    let bucket = subject::lease_bucket(&cluster.namespace);
    let store = jetstream.get_key_value(&bucket).await.map_err(|error| {
        anyhow::anyhow!("no bucket '{bucket}' ({error}): no cluster runs in this namespace")
    })?;
    let mut keys = store.keys().await?;
    let mut leases: Vec<Lease> = Vec::new();
    while let Some(key) = keys.next().await {
        if let Some(body) = store.get(key?).await? {
            leases.push(codec::decode(&body)?);
        }
    }
    leases.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(leases)
}
