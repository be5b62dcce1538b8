//! This instance's lease: one key in a NATS key-value bucket, renewed each second, gone three seconds later.

use std::time::Duration;

use async_nats::jetstream::{self, kv, stream::StorageType};
use messages::{Namespace, codec, lease::Lease, subject};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError};

pub const RENEW_EVERY: Duration = Duration::from_secs(1);
pub const TTL: Duration = Duration::from_secs(3);
/// Limit markers make an expiry an event; the server keeps each marker this long.
const MARKER_TTL: Duration = Duration::from_secs(1);
/// Any one server of a cluster may go.
const CLUSTER_REPLICAS: usize = 3;

/// Opens the bucket of leases, making it if this is the first instance. `replicas`: 3 on a NATS cluster unless set.
///
/// # Errors
/// [`BusError::JetStream`] if the server has no JetStream or is too old for limit markers.
pub async fn open(bus: &Bus, replicas: Option<usize>) -> Result<kv::Store, BusError> {
    let replicas = replicas.unwrap_or(if bus.is_clustered() { CLUSTER_REPLICAS } else { 1 });
    let jetstream = jetstream::new(bus.requests().clone());
    let bucket = bucket(bus.namespace(), replicas);
    let name = bucket.bucket.clone();
    match jetstream.create_key_value(bucket).await {
        Ok(store) => Ok(store),
        // Another instance may have made it with other replicas: what counts is that it is there.
        Err(error) => {
            let store = jetstream.get_key_value(name).await;
            let store = store.map_err(|_| BusError::JetStream(error.to_string()))?;
            warn_of_replicas(&store, replicas).await;
            Ok(store)
        }
    }
}

async fn warn_of_replicas(store: &kv::Store, wanted: usize) {
    let Ok(status) = store.status().await else { return };
    let found = status.info.config.num_replicas;
    if found < wanted {
        tracing::warn!(
            found,
            wanted,
            "the bucket of leases was made with fewer replicas; to raise them: nats stream edit {} --replicas {wanted}",
            status.info.config.name,
        );
    }
}

fn bucket(namespace: &Namespace, replicas: usize) -> kv::Config {
    kv::Config {
        bucket: subject::lease_bucket(namespace),
        description: "one key per live stator instance".to_owned(),
        history: 1,
        max_age: TTL,
        limit_markers: Some(MARKER_TTL),
        storage: StorageType::Memory,
        num_replicas: replicas,
        ..Default::default()
    }
}

/// Keeps the lease that `lease` holds until `stop`, then drops it.
///
/// A bucket that is gone (the server restarted without its memory) is made anew.
pub async fn keep(
    bus: Bus,
    replicas: Option<usize>,
    mut lease: watch::Receiver<Lease>,
    stop: CancellationToken,
) {
    let mut store = open(&bus, replicas).await.ok();
    let mut tick = tokio::time::interval(RENEW_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let key = key(&lease.borrow());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = lease.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
        let body = codec::encode(&*lease.borrow_and_update());
        if renew(store.as_ref(), &key, body).await {
            continue;
        }
        metrics::counter!("stator_lease_renewals_failed_total").increment(1);
        store = tokio::time::timeout(RENEW_EVERY, open(&bus, replicas)).await.ok().and_then(Result::ok);
    }
    if let Some(store) = store {
        let _ = tokio::time::timeout(RENEW_EVERY, store.delete(&key)).await;
    }
}

/// The key under which a lease is kept.
pub fn key(lease: &Lease) -> String {
    subject::lease_key(lease.role, &lease.pool, &lease.instance)
}

async fn renew(store: Option<&kv::Store>, key: &str, body: bytes::Bytes) -> bool {
    let Some(store) = store else { return false };
    matches!(tokio::time::timeout(RENEW_EVERY, store.put(key, body)).await, Ok(Ok(_)))
}
