//! The device thread: one OS thread that owns the executor and its scheduler and runs the step loop.

mod cache;
mod clock;
mod copies;
mod hang;
mod memory;
mod thread;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actors::process;
use kv::transfer::{DeviceMemory, LandedPage, Place};
use messages::{
    InstanceId,
    frame::Pulse,
    kv::{KvEvents, KvSnapshot},
};
use models::{Copying, ExecutorSpec};
use parking_lot::Mutex;
use scheduler::{Event, Landing, Load, Refusal, Request, RunKey, Scheduler, SchedulerConfig};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{executor::Built, feed::Feeds};
pub use clock::DeviceClock;
use hang::HangWatch;
use memory::WatchedMemory;
use thread::Thread;

/// Exit code of a process whose device is lost or hangs: the supervisor starts a new one.
pub const DEVICE_LOST: i32 = 70;
/// Commands that may wait for the next step boundary.
const INTAKE: usize = 2048;
/// Step reports that may wait for the actor; beyond this the device waits for it.
const REPORTS: usize = 64;

/// To the device thread.
pub enum Command {
    Admit {
        request: Box<Request>,
        dispatch: Option<Dispatch>,
    },
    Cancel {
        run: RunKey,
        choice: Option<u32>,
    },
    KvSnapshot(oneshot::Sender<KvSnapshot>),
    /// Between steps, in the order in which they come.
    Copy(Copy),
}

/// Work on pages of a run.
pub enum Copy {
    /// The next block of a prompt that waits for blocks has landed.
    Land { run: RunKey, block: u32, page: LandedPage },
    /// The run goes on with what has landed.
    GoOn(RunKey),
    /// A computed block is to be read out into the run's feed, which ends if that cannot be done.
    Read { run: RunKey, block: u32 },
    /// The device is to copy computed blocks out.
    Out(CopyOut),
}

/// Blocks and the places where they go. If one of them is not there, no answer comes and the run's feed tells of it.
pub struct CopyOut {
    pub run: RunKey,
    /// At most [`COPIED_AT_ONCE`].
    pub blocks: Vec<(u32, Place)>,
    pub answer: std::sync::mpsc::Sender<Box<dyn Copying>>,
}

/// Blocks of one [`CopyOut`].
pub const COPIED_AT_ONCE: u32 = 64;

/// Who dispatched a request, and the number of the dispatch.
pub type Dispatch = (InstanceId, u64);

/// From the device thread, once a step or admission.
pub enum Report {
    Refused {
        run: RunKey,
        why: Refusal,
    },
    /// The run waits for blocks `held..wanted` of its prompt.
    Waits {
        run: RunKey,
        held: u32,
        wanted: u32,
    },
    /// A block was offered to a run that waits.
    Landed {
        run: RunKey,
        landing: Landing,
    },
    Step {
        events: Vec<Event>,
        sampled_us: u64,
    },
    Cache(KvEvents),
}

/// The state that the device thread was in when it last looked.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub load: Load,
    /// Per router, the highest dispatch number that `load` includes.
    pub seen: Vec<Dispatch>,
}

/// The actor's end of a device thread.
#[derive(Clone)]
pub struct Device {
    commands: SyncSender<Command>,
    pub spec: ExecutorSpec,
    /// Tokens of the longest sequence that there is room for.
    pub longest_sequence: u32,
    /// Of the device, if other processes can reach it.
    pub memory: Option<Arc<dyn DeviceMemory>>,
    pub clock: Arc<DeviceClock>,
    observed: Arc<Mutex<Observed>>,
    /// A dispatch came to be included in what is observed.
    pub dispatched: Arc<Notify>,
    /// Where blocks go that others want.
    pub feeds: Arc<Feeds>,
    spares: Arc<AtomicBool>,
    hang: Arc<Mutex<HangWatch>>,
}

/// The intake is full; here is the command.
pub struct Full(pub Command);

impl std::fmt::Debug for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the intake of the device is full")
    }
}

/// Pause before a command that must get through is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(2);

impl Device {
    /// Starts the thread of `instance`; `build` makes the executor on it.
    ///
    /// # Errors
    /// What `build` returns.
    pub async fn start<F>(
        instance: InstanceId,
        build: F,
        config: SchedulerConfig,
        step_floor: Duration,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Report>)>
    where
        F: FnOnce() -> anyhow::Result<Built> + Send + 'static,
    {
        let (commands, intake) = sync_channel(INTAKE);
        let (reports, reported) = mpsc::channel(REPORTS);
        let (built, spec) = oneshot::channel();
        let clock = Arc::new(DeviceClock::default());
        let observed = Arc::new(Mutex::new(Observed::default()));
        let dispatched = Arc::new(Notify::new());
        let feeds = Arc::new(Feeds::default());
        let spares = Arc::new(AtomicBool::new(false));
        let shared = thread::Shared {
            clock: clock.clone(),
            observed: observed.clone(),
            dispatched: dispatched.clone(),
            feeds: feeds.clone(),
            spares: spares.clone(),
        };
        std::thread::Builder::new().name("device".to_owned()).spawn(move || {
            let Built { mut executor, memory, .. } = match build() {
                Ok(built) => built,
                Err(error) => return drop(built.send(Err(error))),
            };
            executor.export_to(shared.feeds.clone());
            let scheduler = Scheduler::new(config, executor.spec());
            shared.observed.lock().load = scheduler.load();
            let longest = scheduler.longest_sequence();
            if built.send(Ok((executor.spec().clone(), longest, memory))).is_err() {
                return;
            }
            let mut thread =
                Thread::new(instance, executor, scheduler, (intake, reports), shared, step_floor);
            if let Err(error) = thread.run() {
                tracing::error!(%error, "device lost, this process ends");
                process::end(DEVICE_LOST);
            }
        })?;
        let (spec, longest_sequence, memory) = spec
            .await
            .map_err(|_| anyhow::anyhow!("the device thread ended while it loaded the model"))??;
        let watched = |memory| Arc::new(WatchedMemory::new(memory, clock.clone())) as Arc<dyn DeviceMemory>;
        let memory = memory.map(watched);
        let device = Self {
            commands,
            spec,
            longest_sequence,
            memory,
            clock,
            observed,
            dispatched,
            feeds,
            spares,
            hang: Arc::default(),
        };
        Ok((device, reported))
    }

    /// What the device is at. Call every heartbeat: the process ends if the device hangs, for nothing else brings it back,
    /// and the actor alone would hold its lease for ever.
    pub fn beat(&self) -> Pulse {
        let pulse = self.clock.pulse();
        if self.hang.lock().hangs(self.clock.oldest()) {
            let Pulse { step, age_ms, bound_ms } = pulse;
            tracing::error!(step, age_ms, bound_ms, "the device hangs, this process ends");
            process::end(DEVICE_LOST);
        }
        pulse
    }

    /// Queues a command for the next step boundary.
    ///
    /// # Errors
    /// [`Full`] if the intake is full.
    pub fn command(&self, command: Command) -> Result<(), Full> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) | TrySendError::Disconnected(command) => Full(command),
        })
    }

    /// Queues a command that must get through; the intake is drained at every step boundary.
    pub async fn insist(&self, mut command: Command) {
        while let Err(Full(refused)) = self.command(command) {
            command = refused;
            tokio::time::sleep(OFFER_AGAIN).await;
        }
    }

    /// Whether prompts are to take only a little of each step from sequences that decode.
    pub fn spare(&self, spares: bool) {
        self.spares.store(spares, Ordering::Relaxed);
    }

    pub fn load(&self) -> Load {
        self.observed.lock().load
    }

    pub fn observed(&self) -> Observed {
        self.observed.lock().clone()
    }

    /// Forgets how far a router's dispatches have come: it is gone.
    pub fn forget_router(&self, router: &InstanceId) {
        self.observed.lock().seen.retain(|(of, _)| of != router);
    }
}

pub(crate) fn unix_micros() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
