use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use messages::frame::Pulse;
use models::StepId;

/// What the device thread stamps and heartbeats read: the running step, since when, and how long it may take.
#[derive(Debug)]
pub struct StepClock {
    origin: Instant,
    step: AtomicU64,
    /// Microseconds after `origin`, plus one; 0 when idle.
    began: AtomicU64,
    bound_ms: AtomicU64,
}

impl Default for StepClock {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { origin: Instant::now(), step: zero(), began: zero(), bound_ms: zero() }
    }
}

impl StepClock {
    pub fn begin(&self, step: StepId, bound: Duration) {
        self.bound_ms.store(millis(bound), Ordering::Relaxed);
        self.began.store(self.micros() + 1, Ordering::Relaxed);
        self.step.store(step.0, Ordering::Release);
    }

    pub fn rest(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    pub fn pulse(&self) -> Pulse {
        let step = self.step.load(Ordering::Acquire);
        let age = match self.began.load(Ordering::Relaxed) {
            0 => 0,
            began => self.micros().saturating_sub(began - 1) / 1000,
        };
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Pulse { step, age_ms: narrow(age), bound_ms: narrow(self.bound_ms.load(Ordering::Relaxed)) }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
