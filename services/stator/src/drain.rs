//! `stator drain`: asks one instance to go.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use futures_util::StreamExt;
use messages::{InstanceId, codec, control::Control, lease::Lease, subject};

use crate::bus::{Cluster, ClusterArgs};

/// How long the bucket of leases may take to answer.
const LOOK_FOR: Duration = Duration::from_secs(5);

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
    let leases =
        tokio::time::timeout(LOOK_FOR, leases(&cluster)).await.context("no answer from jetstream")??;
    let Some(instance) = args.instance else {
        for lease in &leases {
            let name = lease.card.as_ref().map_or("-", |card| card.name.as_str());
            println!("{}\t{:?}\t{}\tpid {}\t{name}", lease.instance, lease.state, lease.host, lease.pid);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let lease = leases
        .iter()
        .find(|lease| lease.instance == instance)
        .with_context(|| format!("no live instance '{instance}'; `stator drain` lists those there are"))?;
    let to = subject::instance_control(&cluster.namespace, lease.role, &lease.pool, &instance);
    let body = codec::encode(&Control::Drain { now: args.now });
    cluster.client.publish(to, body).await?;
    cluster.client.flush().await?;
    eprintln!("{instance} was asked to drain");
    Ok(ExitCode::SUCCESS)
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
