use std::{collections::HashMap, sync::Arc};

use kv::{
    PageLayout,
    transfer::{DeviceMemory, Epoch, Event, Grant, GrantError, Receiver, ReceiverConfig, Transports},
};
use messages::{InstanceId, RunId, lease::Lease};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

/// The transfer slots of this engine, and which run each grant is for.
pub(super) struct Slots {
    receiver: Receiver,
    layout: PageLayout,
    runs: Mutex<HashMap<Epoch, RunId>>,
    /// Prefill engines without a lease, whose processes may live on.
    departed: Mutex<Vec<Arc<Lease>>>,
}

impl Slots {
    /// Pages that land on the host go on to `memory`, if there is some.
    pub fn start(
        config: ReceiverConfig,
        transports: &Transports,
        memory: Option<&dyn DeviceMemory>,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let layout = config.layout.clone();
        let receiver = Receiver::start(config, &transports.0, on_event)?;
        if let Some(Err(error)) = memory.map(|memory| receiver.keep_in(memory)) {
            tracing::warn!(%error, "no device memory for kv pages that come in: they go by the device thread");
        }
        Ok(Self { receiver, layout, runs: Mutex::default(), departed: Mutex::default() })
    }

    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    pub fn lend(
        &self,
        run: RunId,
        pages: u32,
        layout: &str,
        writer: &InstanceId,
    ) -> Result<Grant, GrantError> {
        let mut runs = self.runs.lock();
        let grant = self.receiver.grant_of(layout, pages, writer.as_str())?;
        runs.insert(grant.epoch, run);
        Ok(grant)
    }

    pub fn run_of(&self, epoch: Epoch) -> Option<RunId> {
        self.runs.lock().get(&epoch).copied()
    }

    /// The grant is over.
    pub fn forget(&self, epoch: Epoch) -> Option<RunId> {
        self.runs.lock().remove(&epoch)
    }

    pub fn revoke(&self, epoch: Epoch) {
        self.forget(epoch);
        self.receiver.revoke(epoch);
    }

    pub fn closed(&self, epoch: Epoch) {
        self.receiver.closed(epoch);
    }

    pub fn departed(&self, lease: Arc<Lease>) {
        self.departed.lock().push(lease);
    }

    /// Frees slots of writers that have ended beyond doubt. A lease may expire while its process is only stopped; but a
    /// process on another host than `host` has no access to the memory of the slots.
    pub fn look(&self, host: Option<&str>) {
        self.departed.lock().retain(|lease| {
            let here = host.is_none_or(|host| host == lease.host);
            if here && is_alive(lease.pid) {
                return true;
            }
            self.receiver.writer_gone(lease.instance.as_str());
            false
        });
        let counts = self.receiver.counts();
        for (state, slots) in [
            ("free", counts.free),
            ("granted", counts.granted),
            ("held", counts.held),
            ("quarantined", counts.quarantined),
        ] {
            metrics::gauge!("stator_kv_slots", "state" => state).set(f64::from(slots));
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}
