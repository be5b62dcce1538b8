//! The device thread: one OS thread that owns the executor and its scheduler and runs the step loop.

mod clock;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use models::{Batch, Executor, ExecutorError, ExecutorSpec, Ticket};
use parking_lot::Mutex;
use scheduler::{Event, Load, Micros, Planned, Refusal, Request, RunKey, Scheduler, SchedulerConfig};
use tokio::sync::{mpsc, oneshot};

pub use clock::StepClock;

/// Exit code of a process whose device is lost: the supervisor starts a new one.
pub const DEVICE_LOST: i32 = 70;
/// Commands that may wait for the next step boundary.
const INTAKE: usize = 2048;
/// Step reports that may wait for the actor; beyond this the device waits for it.
const REPORTS: usize = 64;

/// To the device thread.
pub enum Command {
    Admit(Box<Request>),
    Cancel { run: RunKey, choice: Option<u32> },
}

/// From the device thread, once a step or admission.
pub enum Report {
    Refused { run: RunKey, why: Refusal },
    Step { events: Vec<Event>, sampled_us: u64 },
}

/// The actor's end of a device thread.
#[derive(Clone)]
pub struct Device {
    commands: SyncSender<Command>,
    pub spec: ExecutorSpec,
    pub clock: Arc<StepClock>,
    load: Arc<Mutex<Load>>,
}

/// The intake is full.
#[derive(Debug)]
pub struct Full;

impl Device {
    /// Starts the thread; `build` makes the executor on it.
    ///
    /// # Errors
    /// What `build` returns.
    pub async fn start<F>(
        build: F,
        config: SchedulerConfig,
        step_floor: Duration,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Report>)>
    where
        F: FnOnce() -> anyhow::Result<Box<dyn Executor>> + Send + 'static,
    {
        let (commands, intake) = sync_channel(INTAKE);
        let (reports, reported) = mpsc::channel(REPORTS);
        let (built, spec) = oneshot::channel();
        let clock = Arc::new(StepClock::default());
        let load = Arc::new(Mutex::new(Load::default()));
        let (thread_clock, thread_load) = (clock.clone(), load.clone());
        std::thread::Builder::new().name("device".to_owned()).spawn(move || {
            let executor = match build() {
                Ok(executor) => executor,
                Err(error) => return drop(built.send(Err(error))),
            };
            let scheduler = Scheduler::new(config, executor.spec());
            *thread_load.lock() = scheduler.load();
            if built.send(Ok(executor.spec().clone())).is_err() {
                return;
            }
            let mut thread = Thread {
                executor,
                scheduler,
                intake,
                reports,
                clock: thread_clock,
                step_floor,
                step_began: Instant::now(),
                load: thread_load,
                began: Instant::now(),
                tickets: VecDeque::new(),
                batch: Batch::default(),
                events: Vec::new(),
            };
            if let Err(error) = thread.run() {
                tracing::error!(%error, "device lost, this process ends");
                std::process::exit(DEVICE_LOST);
            }
        })?;
        let spec = spec
            .await
            .map_err(|_| anyhow::anyhow!("the device thread ended while it loaded the model"))??;
        Ok((Self { commands, spec, clock, load }, reported))
    }

    /// Queues a command for the next step boundary.
    ///
    /// # Errors
    /// [`Full`] if the intake is full.
    pub fn command(&self, command: Command) -> Result<(), Full> {
        self.commands.try_send(command).map_err(|_| Full)
    }

    pub fn load(&self) -> Load {
        *self.load.lock()
    }
}

struct Thread {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    intake: Receiver<Command>,
    reports: mpsc::Sender<Report>,
    clock: Arc<StepClock>,
    load: Arc<Mutex<Load>>,
    step_floor: Duration,
    step_began: Instant,
    began: Instant,
    tickets: VecDeque<Ticket>,
    batch: Batch,
    events: Vec<Event>,
}

/// The actor is gone or the device is lost: either ends the thread.
enum Ended {
    Orphaned,
    Lost(ExecutorError),
}

impl Thread {
    fn run(&mut self) -> Result<(), ExecutorError> {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(Ended::Orphaned) => return Ok(()),
                Err(Ended::Lost(error)) => return Err(error),
            }
        }
    }

    fn turn(&mut self) -> Result<(), Ended> {
        self.take_commands()?;
        let now = self.now();
        match self.scheduler.plan(now, &mut self.batch, &mut self.events) {
            Planned::Step { bound } => {
                self.clock.begin(self.batch.step, bound + self.step_floor);
                self.step_began = Instant::now();
                match self.executor.submit(&self.batch) {
                    Ok(ticket) => self.tickets.push_back(ticket),
                    Err(ExecutorError::Batch(reason)) => {
                        tracing::error!(reason, "step refused by the executor, its runs fail");
                        self.scheduler.reject(&self.batch, &mut self.events);
                    }
                    Err(lost) => return Err(Ended::Lost(lost)),
                }
                self.report(0)
            }
            Planned::Blocked => self.collect(),
            Planned::Idle => {
                self.report(0)?;
                self.clock.rest();
                let command = self.intake.recv().map_err(|_| Ended::Orphaned)?;
                self.obey(command)
            }
        }
    }

    fn collect(&mut self) -> Result<(), Ended> {
        let Some(ticket) = self.tickets.pop_front() else { return Ok(()) };
        let outputs = self.executor.collect(ticket).map_err(Ended::Lost)?;
        std::thread::sleep(self.step_floor.saturating_sub(self.step_began.elapsed()));
        let sampled_us = unix_micros();
        if self.tickets.is_empty() {
            self.clock.rest();
        }
        let elapsed = outputs.elapsed;
        metrics::histogram!("stator_engine_step_seconds").record(elapsed.as_secs_f64());
        metrics::histogram!("stator_engine_batch_size").record(outputs.sampled.len() as f64);
        self.scheduler.complete(outputs, &mut self.events);
        self.report(sampled_us)
    }

    fn report(&mut self, sampled_us: u64) -> Result<(), Ended> {
        *self.load.lock() = self.scheduler.load();
        if self.events.is_empty() {
            return Ok(());
        }
        let report = Report::Step { events: std::mem::take(&mut self.events), sampled_us };
        self.reports.blocking_send(report).map_err(|_| Ended::Orphaned)
    }

    fn take_commands(&mut self) -> Result<(), Ended> {
        loop {
            match self.intake.try_recv() {
                Ok(command) => self.obey(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Ended::Orphaned),
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), Ended> {
        match command {
            Command::Admit(request) => {
                let (run, now) = (request.run, self.now());
                let request = Request {
                    arrived: now,
                    deadline: request.deadline.map(|d| Micros(now.0 + d.0)),
                    ..*request
                };
                if let Err(why) = self.scheduler.admit(request) {
                    self.reports.blocking_send(Report::Refused { run, why }).map_err(|_| Ended::Orphaned)?;
                }
            }
            Command::Cancel { run, choice } => {
                self.scheduler.cancel(run, choice);
            }
        }
        Ok(())
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

pub(crate) fn unix_micros() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
