//! The threads of an executor: a fixed team that walks through the phases of a step together.
//!
//! A phase is a number of independent units. Workers claim units one by one, and whoever finishes the last one opens
//! the next phase; nobody waits for a worker that holds no unit, so one that lost its core to another process delays
//! a step by the unit in its hands at most. A worker without work spins for a moment, then sleeps.

mod slice;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a worker without work looks for some before it sleeps. Longer spinning takes the core from whoever else
/// runs on it, which beside a busy process costs far more than waking up does.
const SPIN: Duration = Duration::from_micros(20);

/// Looks at the clock once in so many looks for work.
const LOOKS_PER_CLOCK: u32 = 64;

/// What a team runs.
pub(crate) trait Work: Send + Sync + 'static {
    /// Number of units of a phase of the running step, at most 65535. Called once for each phase, before any of its
    /// units.
    fn open(&self, phase: u32) -> u32;

    /// Runs a unit. What earlier phases wrote is visible; units of one phase run at the same time. `worker` is the
    /// thread, below the team's size.
    fn run(&self, phase: u32, unit: u32, worker: usize);
}

/// A unit panicked: what the step has written is not to be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Poisoned;

/// Threads that run steps of `W`, the caller's included.
pub(crate) struct Team<W: Work> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
}

/// Progress of the running step in one word, so that a worker that comes late, even steps late, claims a unit only of
/// the phase that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Counts phases over all steps, wrapping.
    phase: u32,
    units: u16,
    claimed: u16,
}

impl Progress {
    fn from_word(word: u64) -> Self {
        Self { phase: (word >> 32) as u32, units: (word >> 16) as u16, claimed: word as u16 }
    }

    fn word(self) -> u64 {
        u64::from(self.phase) << 32 | u64::from(self.units) << 16 | u64::from(self.claimed)
    }
}

/// Keeps what one thread writes often off the lines that others read.
#[repr(align(128))]
struct Line<T>(T);

struct Shared<W> {
    work: W,
    progress: Line<AtomicU64>,
    /// Units of the open phase that are not finished.
    unfinished: Line<AtomicU32>,
    /// `Progress::phase` of the running step's first phase, and of the one after its last.
    first: AtomicU32,
    end: AtomicU32,
    sleepers: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    poisoned: AtomicBool,
}

impl<W: Work> Team<W> {
    /// Starts `size - 1` threads beside the caller's and waits until they run.
    pub fn new(size: usize, work: W) -> std::io::Result<Self> {
        slice::lengthen();
        let shared = Arc::new(Shared {
            work,
            progress: Line(AtomicU64::new(0)),
            unfinished: Line(AtomicU32::new(0)),
            first: AtomicU32::new(0),
            end: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        });
        let mut team = Self { shared, threads: Vec::with_capacity(size) };
        let (started, running) = mpsc::sync_channel(size);
        for worker in 1..size.max(1) {
            let (shared, started) = (team.shared.clone(), started.clone());
            let serve = move || {
                // Fails only if another thread could not be started and the team is given up.
                if started.send(()).is_ok() {
                    slice::lengthen();
                    shared.serve(worker);
                }
            };
            team.threads.push(std::thread::Builder::new().name(format!("cpu-{worker}")).spawn(serve)?);
        }
        drop(started);
        running.iter().take(team.threads.len()).for_each(drop);
        Ok(team)
    }

    pub fn work(&self) -> &W {
        &self.shared.work
    }

    /// Starts a step of `phases` phases. The other threads begin at once; what the caller has written is visible to
    /// them. The step before must be finished.
    pub fn start(&mut self, phases: u32) {
        let shared = &self.shared;
        let phase = Progress::from_word(shared.progress.0.load(Ordering::Acquire)).phase;
        shared.first.store(phase.wrapping_add(1), Ordering::Relaxed);
        shared.end.store(phase.wrapping_add(1).wrapping_add(phases), Ordering::Relaxed);
        shared.open_after(phase);
    }

    /// Works on the step until all its phases are finished.
    pub fn finish(&mut self) -> Result<(), Poisoned> {
        let end = self.shared.end.load(Ordering::Relaxed);
        self.shared.work_until(0, |progress| progress.phase == end);
        if self.shared.poisoned.load(Ordering::Acquire) { Err(Poisoned) } else { Ok(()) }
    }
}

impl<W: Work> Drop for Team<W> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a compute thread panicked");
            }
        }
    }
}

impl<W: Work> Shared<W> {
    fn serve(&self, worker: usize) {
        self.work_until(worker, |_| self.stop.load(Ordering::SeqCst));
    }

    fn work_until(&self, worker: usize, done: impl Fn(Progress) -> bool) {
        loop {
            let word = self.progress.0.load(Ordering::Acquire);
            let progress = Progress::from_word(word);
            if done(progress) || self.poisoned.load(Ordering::Relaxed) {
                return;
            }
            if progress.claimed == progress.units {
                self.wait_for_change(word, || done(progress));
                continue;
            }
            let claim = Progress { claimed: progress.claimed + 1, ..progress };
            let swap = self.progress.0.compare_exchange_weak(
                word,
                claim.word(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if swap.is_ok() {
                self.run_unit(progress, worker);
            }
        }
    }

    fn run_unit(&self, progress: Progress, worker: usize) {
        let phase = progress.phase.wrapping_sub(self.first.load(Ordering::Relaxed));
        let unit = u32::from(progress.claimed);
        if catch_unwind(AssertUnwindSafe(|| self.work.run(phase, unit, worker))).is_err() {
            tracing::error!(phase, unit, worker, "a unit of a step panicked");
            self.poisoned.store(true, Ordering::Release);
            self.publish(Progress { phase: self.end.load(Ordering::Relaxed), units: 0, claimed: 0 });
        } else if self.unfinished.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open_after(progress.phase);
        }
    }

    /// Opens the next phase that has units, or ends the step.
    fn open_after(&self, phase: u32) {
        let first = self.first.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let mut phase = phase;
        let units = loop {
            phase = phase.wrapping_add(1);
            if phase == end {
                break 0;
            }
            let units = self.work.open(phase.wrapping_sub(first));
            if units > 0 {
                break units;
            }
        };
        let units = u16::try_from(units).unwrap_or(u16::MAX);
        self.unfinished.0.store(units.into(), Ordering::Relaxed);
        self.publish(Progress { phase, units, claimed: 0 });
    }

    fn publish(&self, progress: Progress) {
        self.progress.0.store(progress.word(), Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.wake.notify_all();
        }
    }

    /// Nothing is guarded but the moment between looking for work and sleeping.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_change(&self, word: u64, done: impl Fn() -> bool) {
        let changed = || self.progress.0.load(Ordering::SeqCst) != word || done();
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if changed() {
                    return;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= SPIN {
                break;
            }
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock();
        while !changed() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
