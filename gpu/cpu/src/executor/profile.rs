use std::time::{Duration, Instant};

use super::PhaseKind;

/// Where the time of steps goes, summed up over all steps since it was last cleared.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    times: [Duration; PhaseKind::ALL.len()],
    steps: u64,
    running: Option<(PhaseKind, Instant)>,
}

impl Profile {
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Time from the opening of phases of this kind to the opening of the next.
    pub fn time(&self, kind: PhaseKind) -> Duration {
        self.times[kind as usize]
    }

    pub fn total(&self) -> Duration {
        self.times.iter().sum()
    }

    /// A phase begins, so the one before has ended.
    pub(super) fn begin(&mut self, kind: PhaseKind) {
        let now = Instant::now();
        self.end_phase(now);
        self.running = Some((kind, now));
    }

    pub(super) fn end_step(&mut self) {
        self.end_phase(Instant::now());
        self.steps += 1;
    }

    fn end_phase(&mut self, now: Instant) {
        if let Some((kind, since)) = self.running.take() {
            self.times[kind as usize] += now - since;
        }
    }
}
