use std::time::{Duration, Instant};

use messages::frame::Pulse;
use models::StepId;
use parking_lot::Mutex;

/// How long anything but a step may take: it moves a few pages, or maps some memory.
const CALL_BOUND: Duration = Duration::from_secs(1);

/// What the device was asked for and has not done: a step, and calls of any thread. Who asks stamps, heartbeats read.
#[derive(Debug, Default)]
pub struct DeviceClock(Mutex<Asked>);

#[derive(Debug, Default)]
struct Asked {
    step: StepId,
    running: Option<Stamp>,
    calls: Vec<Stamp>,
}

/// Since when the device is at something, and how long that may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub began: Instant,
    pub bound: Duration,
}

impl Stamp {
    fn now(bound: Duration) -> Self {
        Self { began: Instant::now(), bound }
    }
}

impl DeviceClock {
    /// A step begins, perhaps before the last one has ended.
    pub fn begin(&self, step: StepId, bound: Duration) {
        let mut asked = self.0.lock();
        asked.step = step;
        asked.running = Some(Stamp::now(bound));
    }

    /// No step runs.
    pub fn rest(&self) {
        self.0.lock().running = None;
    }

    /// Makes a call that the device may never answer.
    pub fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        let stamp = Stamp::now(CALL_BOUND);
        self.0.lock().calls.push(stamp);
        let answer = call();
        let calls = &mut self.0.lock().calls;
        if let Some(place) = calls.iter().position(|call| *call == stamp) {
            calls.swap_remove(place);
        }
        answer
    }

    /// What the device has been at for longest.
    pub(super) fn oldest(&self) -> Option<Stamp> {
        self.0.lock().oldest()
    }

    pub fn pulse(&self) -> Pulse {
        let asked = self.0.lock();
        let (age, bound) = asked.oldest().map_or_else(Default::default, |it| (it.began.elapsed(), it.bound));
        Pulse { step: asked.step.0, age_ms: millis(age), bound_ms: millis(bound) }
    }
}

impl Asked {
    fn oldest(&self) -> Option<Stamp> {
        self.running.iter().chain(&self.calls).min_by_key(|stamp| stamp.began).copied()
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(3);

    #[test]
    fn the_oldest_of_steps_and_calls_is_told() {
        let clock = DeviceClock::default();
        let bound = || clock.oldest().map(|stamp| stamp.bound);
        clock.watch(|| {
            clock.begin(StepId(7), STEP);
            assert_eq!(bound(), Some(CALL_BOUND));
        });
        assert_eq!(bound(), Some(STEP));
        clock.watch(|| {
            assert_eq!(bound(), Some(STEP));
            clock.rest();
            assert_eq!(bound(), Some(CALL_BOUND));
        });
        assert_eq!(clock.pulse(), Pulse { step: 7, age_ms: 0, bound_ms: 0 }, "nothing is under way");
    }
}
