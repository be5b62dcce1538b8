//! What an engine tells all routers: its load, and what its prefix cache goes through.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors::{Context, frames::HEARTBEAT, lane::Responder};
use messages::{
    kv::KvEvents,
    load::{Load, STARTED_PER_REPORT, Started},
    subject,
};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    device::{Command, Device, Dispatch},
    remote::Remote,
    runs::Runs,
};

/// Loads follow each other by at least this much, however many requests come in.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Broadcasts loads and cache changes of one engine.
pub struct Broadcast {
    context: Context,
    device: Device,
    /// Of a decode engine; a prefill engine has none.
    runs: Arc<Mutex<Runs>>,
    /// Of a decode engine whose prompts others may compute.
    remote: Option<Arc<Remote>>,
    /// Epoch and number of the next cache change to be told.
    cache: Mutex<Option<(u64, u64)>>,
    started: Mutex<Vec<Started>>,
    loads: AtomicU64,
}

impl Broadcast {
    pub fn new(
        context: Context,
        device: Device,
        runs: Arc<Mutex<Runs>>,
        remote: Option<Arc<Remote>>,
    ) -> Arc<Self> {
        let (cache, started, loads) = Default::default();
        Arc::new(Self { context, device, runs, remote, cache, started, loads })
    }

    /// Tells of changes of the prefix cache. Followers notice by its number if a message is lost.
    pub fn changes(&self, events: &KvEvents) {
        let me = &self.context.me;
        let subject = subject::kv_events(self.context.bus.namespace(), &me.pool, &me.instance);
        if let Err(error) = self.context.bus.tell(subject, None, events) {
            tracing::warn!(%error, "cache changes not sent");
        }
        *self.cache.lock() = Some((events.epoch, events.number + 1));
    }

    /// Notes what the prefix cache was worth to a run, for the next load.
    pub fn began(&self, (router, number): Dispatch, cached_tokens: u32) {
        let mut started = self.started.lock();
        if started.len() < STARTED_PER_REPORT {
            started.push(Started { router, number, cached_tokens });
        }
    }

    /// Answers with the whole prefix cache, as far as it fits the bus.
    pub fn snapshot(&self, reply: Responder) {
        let (answer, snapshot) = oneshot::channel();
        if self.device.command(Command::KvSnapshot(answer)).is_ok() {
            let most = self.context.bus.max_payload();
            tokio::spawn(async move {
                if let Ok(snapshot) = snapshot.await {
                    reply.send(&snapshot.cut_to(most));
                }
            });
        }
    }

    /// Tells the load, at each heartbeat and soon after a dispatch came to be included.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let _ = timeout(HEARTBEAT.saturating_sub(LEAST_PAUSE), self.device.dispatched.notified()).await;
            self.tell_load();
            tokio::time::sleep(LEAST_PAUSE).await;
        }
    }

    fn tell_load(&self) {
        let load = self.load();
        metrics::gauge!("stator_engine_running").set(f64::from(load.running));
        metrics::gauge!("stator_engine_queued").set(f64::from(load.queued));
        metrics::gauge!("stator_engine_kv_blocks_used").set(f64::from(load.blocks_used));
        metrics::gauge!("stator_engine_kv_blocks_cached").set(f64::from(load.blocks_cached));
        metrics::gauge!("stator_engine_kv_blocks_total").set(f64::from(load.blocks_total));
        metrics::counter!("stator_engine_preemptions_total").absolute(self.device.load().preemptions);
        let me = &self.context.me;
        let subject = subject::load(self.context.bus.namespace(), &me.pool, &me.instance);
        let _ = self.context.bus.tell(subject, None, &load);
    }

    fn load(&self) -> Load {
        let observed = self.device.observed();
        let load = observed.load;
        let narrow = |micros: u128| u32::try_from(micros).unwrap_or(u32::MAX);
        Load {
            instance: self.context.me.instance.clone(),
            number: self.loads.fetch_add(1, Ordering::Relaxed) + 1,
            running: load.running,
            queued: load.queued,
            max_running: load.max_running,
            max_queued: load.max_queued,
            blocks_used: load.blocks_used,
            blocks_cached: load.blocks_cached,
            blocks_total: load.blocks_total,
            pending_prefill_tokens: u32::try_from(load.pending_prefill_tokens).unwrap_or(u32::MAX),
            step_us: narrow(load.step_time.as_micros()),
            prefill_token_ns: narrow(load.prefill_token_time.as_nanos()),
            seen: observed.seen,
            kv: *self.cache.lock(),
            maybe_poison: self.runs.lock().has_poison(),
            shunned: self.remote.as_ref().map(|remote| remote.shunned()).unwrap_or_default(),
            started: std::mem::take(&mut *self.started.lock()),
        }
    }
}
