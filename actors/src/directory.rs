//! Who is alive, as this process sees it: the leases of the whole cluster, kept by a watch.

mod departed;
mod roll;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::kv::{Operation, Store};
use futures_util::StreamExt;
use messages::{
    InstanceId, Pool, Role, codec,
    lease::{Lease, ModelCard},
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::{
    bus::Bus,
    lease::{self, TTL},
};
pub(crate) use departed::Departed;
use roll::Roll;

/// Departures that a slow listener may fall behind by.
const DEPARTURES: usize = 1024;
const TICK: Duration = Duration::from_millis(250);
/// A tick later than this means that this process itself stood still.
const OWN_PAUSE: Duration = Duration::from_secs(2);

/// Leases of one role and pool, by instance.
pub type Leases = Arc<[Arc<Lease>]>;

#[derive(Clone)]
pub struct Directory {
    shared: Arc<Shared>,
}

struct Shared {
    roll: Mutex<Roll>,
    version: watch::Sender<u64>,
    /// Every lease of the bucket was seen once.
    complete: watch::Sender<bool>,
    departures: broadcast::Sender<Arc<Lease>>,
}

impl Directory {
    /// Starts watching.
    pub fn watch(bus: Bus, replicas: Option<usize>) -> Self {
        let shared = Arc::new(Shared {
            roll: Mutex::new(Roll::new(Instant::now())),
            version: watch::channel(0).0,
            complete: watch::channel(false).0,
            departures: broadcast::channel(DEPARTURES).0,
        });
        tokio::spawn(follow(shared.clone(), bus.clone(), replicas));
        tokio::spawn(judge(shared.clone(), bus));
        Self { shared }
    }

    /// Names the lease that this process itself renews. While it is not seen, bucket or watch are at fault and nobody
    /// else is judged by them.
    pub fn holds_own(&self, lease: &Lease) {
        self.shared.roll.lock().own(lease::key(lease));
    }

    /// Instances of a pool that take work.
    pub fn instances(&self, role: Role, pool: &Pool) -> Leases {
        self.shared.roll.lock().ready(role, pool)
    }

    /// Every live instance.
    pub fn all(&self) -> Vec<Arc<Lease>> {
        self.shared.roll.lock().all()
    }

    pub fn lease(&self, instance: &InstanceId) -> Option<Arc<Lease>> {
        self.shared.roll.lock().get(instance)
    }

    /// The newest revision of a model. It is known while any instance of it lives, and for ten minutes after the last.
    pub fn model(&self, name: &str) -> Option<Arc<ModelCard>> {
        self.shared.roll.lock().model(name, Instant::now())
    }

    /// The newest revision of each model of which an instance lives, by name.
    pub fn models(&self) -> Arc<[Arc<ModelCard>]> {
        self.shared.roll.lock().models()
    }

    /// Tells that something changed; the number is of no meaning.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Waits until every lease that was there at the start of the watch is known: before, nobody can tell who does not
    /// live.
    pub async fn complete(&self) {
        let _ = self.shared.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// Leases as they end.
    pub fn departures(&self) -> broadcast::Receiver<Arc<Lease>> {
        self.shared.departures.subscribe()
    }
}

impl Shared {
    fn depart(&self, gone: Vec<Arc<Lease>>) {
        for lease in gone {
            tracing::info!(instance = %lease.instance, role = %lease.role, pool = %lease.pool, "instance departed");
            let _ = self.departures.send(lease);
        }
    }

    fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// Follows the bucket; begins again whenever the watch breaks.
async fn follow(shared: Arc<Shared>, bus: Bus, replicas: Option<usize>) {
    loop {
        let epoch = bus.link().borrow().epoch;
        if let Ok(store) = lease::open(&bus, replicas).await {
            shared.roll.lock().distrust(Instant::now());
            follow_store(&shared, &bus, &store, epoch).await;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn follow_store(shared: &Shared, bus: &Bus, store: &Store, epoch: u64) {
    let Ok(mut entries) = store.watch_with_history(">").await else { return };
    let mut link = bus.link();
    let mut tick = tokio::time::interval(TTL);
    loop {
        let entry = tokio::select! {
            entry = entries.next() => entry,
            // What brings the entries may have gone with a server of the cluster, without a word.
            now = tick.tick() => {
                if shared.roll.lock().own_unseen(now.into_std()).is_some_and(|time| time > DISTRUST_FOR) {
                    tracing::warn!("own lease not seen, the watch begins anew");
                    return;
                }
                continue;
            }
            // The bucket may be a new one after a reconnect: watch it from its beginning.
            _ = link.wait_for(|link| link.epoch != epoch) => return,
        };
        let Some(Ok(entry)) = entry else { return };
        let now = Instant::now();
        if entry.operation == Operation::Put {
            match codec::decode::<Lease>(&entry.value) {
                Ok(lease) => {
                    if shared.roll.lock().renewed(&entry.key, lease, now) {
                        shared.bump();
                    }
                }
                Err(error) => tracing::warn!(key = entry.key, %error, "lease ignored"),
            }
        } else if entry.operation == Operation::Delete {
            let gone = shared.roll.lock().given_back(&entry.key);
            if let Some(gone) = gone {
                shared.depart(vec![gone]);
                shared.bump();
            }
        } else {
            shared.roll.lock().expired(&entry.key);
        }
        if entry.seen_current {
            shared.complete.send_if_modified(|complete| !std::mem::replace(complete, true));
        }
    }
}

/// Ends leases that were not renewed, unless the fault may be this process's own.
async fn judge(shared: Arc<Shared>, bus: Bus) {
    let mut last = Instant::now();
    let mut epoch = 1;
    loop {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        let link = *bus.link().borrow();
        let gone = {
            let mut roll = shared.roll.lock();
            if now.duration_since(last) > OWN_PAUSE || link.cut_off.is_some() || link.epoch != epoch {
                roll.distrust(now);
            }
            roll.overdue(now)
        };
        (last, epoch) = (now, link.epoch);
        if !gone.is_empty() {
            shared.depart(gone);
            shared.bump();
        }
    }
}

/// For how long nobody judges leases after this process could not see them.
const DISTRUST_FOR: Duration = TTL.saturating_add(Duration::from_secs(1));
