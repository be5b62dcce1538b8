use std::{
    collections::VecDeque,
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use messages::InstanceId;
use models::{Batch, Executor, ExecutorError, Ticket};
use parking_lot::Mutex;
use scheduler::{Event, Goal, Micros, Planned, Request, Scheduler};
use tokio::sync::{Notify, mpsc};

use super::{
    Command, DeviceClock, Dispatch, Observed, Report, cache::CacheFeed, copies::Copies, unix_micros,
};
use crate::feed::Feeds;

/// How often a thread without a step looks at the deadlines of runs that wait for blocks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Thread {
    /// Never dropped. The process ends with this thread: the libraries of a device are being torn down meanwhile, and its
    /// memory is given back with the process.
    executor: ManuallyDrop<Box<dyn Executor>>,
    scheduler: Scheduler,
    intake: Receiver<Command>,
    reports: mpsc::Sender<Report>,
    shared: Shared,
    /// Dispatches that the next observation will include.
    fresh: Vec<Dispatch>,
    cache: CacheFeed,
    copies: Copies,
    step_floor: Duration,
    step_began: Instant,
    step_ended: Instant,
    began: Instant,
    /// Of steps in flight, and whether a pause without work came before each.
    tickets: VecDeque<(Ticket, bool)>,
    /// There was nothing to do since the last step was submitted.
    paused: bool,
    batch: Batch,
    events: Vec<Event>,
}

/// What the thread and its actor both see.
pub(super) struct Shared {
    pub clock: Arc<DeviceClock>,
    pub observed: Arc<Mutex<Observed>>,
    pub dispatched: Arc<Notify>,
    pub feeds: Arc<Feeds>,
    pub spares: Arc<AtomicBool>,
}

/// The actor is gone or the device is lost: either ends the thread.
pub(super) enum Ended {
    Orphaned,
    Lost(ExecutorError),
}

impl Thread {
    pub fn new(
        instance: InstanceId,
        executor: Box<dyn Executor>,
        scheduler: Scheduler,
        (intake, reports): (Receiver<Command>, mpsc::Sender<Report>),
        shared: Shared,
        step_floor: Duration,
    ) -> Self {
        Self {
            copies: Copies::new(executor.spec().kv.page_bytes()),
            executor: ManuallyDrop::new(executor),
            scheduler,
            intake,
            reports,
            shared,
            fresh: Vec::new(),
            cache: CacheFeed::new(instance),
            step_floor,
            step_began: Instant::now(),
            step_ended: Instant::now(),
            began: Instant::now(),
            tickets: VecDeque::new(),
            paused: true,
            batch: Batch::default(),
            events: Vec::new(),
        }
    }

    pub fn run(&mut self) -> Result<(), ExecutorError> {
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
        self.copy_pages()?;
        let now = self.now();
        self.scheduler.spare(self.shared.spares.load(Ordering::Relaxed));
        match self.scheduler.plan(now, &mut self.batch, &mut self.events) {
            Planned::Step { bound } => {
                self.shared.clock.begin(self.batch.step, bound + self.step_floor);
                self.step_began = Instant::now();
                match self.executor.submit(&self.batch) {
                    Ok(ticket) => {
                        self.tickets.push_back((ticket, std::mem::take(&mut self.paused)));
                    }
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
                self.shared.clock.rest();
                self.paused = true;
                self.wait()
            }
        }
    }

    /// Waits for a command while there is no step to run.
    fn wait(&mut self) -> Result<(), Ended> {
        if !self.copies.is_empty() {
            return Ok(());
        }
        self.shared.clock.watch(|| self.copies.settle(true)).map_err(Ended::Lost)?;
        if self.scheduler.is_idle() {
            let command = self.intake.recv().map_err(|_| Ended::Orphaned)?;
            return self.obey(command);
        }
        match self.intake.recv_timeout(LOOK_EVERY) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Ended::Orphaned),
        }
    }

    /// Copies pages, as many as a pause between two steps may take.
    fn copy_pages(&mut self) -> Result<(), Ended> {
        self.shared.clock.watch(|| self.copies.settle(false)).map_err(Ended::Lost)?;
        if self.copies.is_empty() || !(self.tickets.is_empty() || self.executor.spec().depth > 1) {
            return Ok(());
        }
        let mut reports = Vec::new();
        let (feeds, step) = (&self.shared.feeds, self.shared.observed.lock().load.step_time);
        let (copies, executor, scheduler) = (&mut self.copies, &mut **self.executor, &mut self.scheduler);
        let copied = self.shared.clock.watch(|| copies.run(executor, scheduler, feeds, step, &mut reports));
        copied.map_err(Ended::Lost)?;
        reports.into_iter().try_for_each(|report| self.send(report))
    }

    fn collect(&mut self) -> Result<(), Ended> {
        let Some((ticket, paused)) = self.tickets.pop_front() else { return Ok(()) };
        self.attend()?;
        let outputs = self.executor.collect(ticket).map_err(Ended::Lost)?;
        std::thread::sleep(self.step_floor.saturating_sub(self.step_began.elapsed()));
        let sampled_us = unix_micros();
        if self.tickets.is_empty() {
            self.shared.clock.rest();
        }
        let elapsed = outputs.elapsed;
        tracing::trace!(
            rows = self.batch.sequences.len(),
            tokens = self.batch.tokens.len(),
            us = elapsed.as_micros() as u64,
            wall_us = self.step_began.elapsed().as_micros() as u64,
            before_us = self.step_began.duration_since(self.step_ended).as_micros() as u64,
            "step"
        );
        self.step_ended = Instant::now();
        metrics::histogram!("stator_engine_step_seconds").record(elapsed.as_secs_f64());
        if let Some(gap) = outputs.gap.filter(|_| !paused) {
            metrics::histogram!("stator_engine_step_gap_seconds").record(gap.as_secs_f64());
        }
        metrics::histogram!("stator_engine_batch_size").record(outputs.sampled.len() as f64);
        self.scheduler.complete(outputs, &mut self.events);
        self.report(sampled_us)
    }

    /// Obeys commands while a step runs that another thread computes: whoever waits for pages need not wait for it.
    fn attend(&mut self) -> Result<(), Ended> {
        while !self.executor.is_done() {
            match self.intake.try_recv() {
                Ok(command) => {
                    self.obey(command)?;
                    self.take_commands()?;
                    self.copy_pages()?;
                }
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => return Err(Ended::Orphaned),
            }
        }
        Ok(())
    }

    fn report(&mut self, sampled_us: u64) -> Result<(), Ended> {
        self.observe();
        if let Some(changes) = self.cache.take(&mut self.scheduler) {
            self.send(Report::Cache(changes))?;
        }
        if self.events.is_empty() {
            return Ok(());
        }
        let report = Report::Step { events: std::mem::take(&mut self.events), sampled_us };
        self.send(report)
    }

    fn send(&self, report: Report) -> Result<(), Ended> {
        self.reports.blocking_send(report).map_err(|_| Ended::Orphaned)
    }

    fn observe(&mut self) {
        let mut observed = self.shared.observed.lock();
        observed.load = self.scheduler.load();
        if self.fresh.is_empty() {
            return;
        }
        for (router, number) in self.fresh.drain(..) {
            match observed.seen.iter_mut().find(|(of, _)| *of == router) {
                Some((_, highest)) => *highest = number.max(*highest),
                None => observed.seen.push((router, number)),
            }
        }
        self.shared.dispatched.notify_one();
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
            Command::Admit { request, dispatch } => {
                self.fresh.extend(dispatch);
                self.admit(*request)?;
            }
            Command::Copy(copy) => self.copies.push(copy),
            Command::Cancel { run, choice } => {
                self.scheduler.cancel(run, choice);
            }
            Command::KvSnapshot(reply) => {
                if let Some(changes) = self.cache.take(&mut self.scheduler) {
                    self.send(Report::Cache(changes))?;
                }
                // Whoever asked may have given up.
                let _ = reply.send(self.cache.snapshot(&self.scheduler));
            }
        }
        Ok(())
    }

    fn admit(&mut self, request: Request) -> Result<(), Ended> {
        let (run, goal, now) = (request.run, request.goal, self.now());
        let deadline = request.deadline.map(|left| Micros(now.0 + left.0));
        match self.scheduler.admit(Request { arrived: now, deadline, ..request }) {
            Err(why) => self.send(Report::Refused { run, why }),
            Ok(admitted) if goal == Goal::OutputOnceLanded => {
                let (held, wanted) = (admitted.held_blocks, admitted.wanted_blocks);
                self.send(Report::Waits { run, held, wanted })
            }
            Ok(_) => Ok(()),
        }
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
