use std::time::Duration;

use super::DEPTH;
use crate::{CudaError, Device, Timer};

/// How long a step took on the device, and how long the device stood still before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Took {
    pub elapsed: Duration,
    /// None before the first step.
    pub gap: Option<Duration>,
}

/// Times steps on the device. Marks of a step are kept until the step after it has been read: one more than steps in
/// flight.
#[derive(Debug)]
pub(super) struct Stopwatch {
    timers: [Timer; DEPTH + 1],
    begun: usize,
    read: usize,
}

impl Stopwatch {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            timers: [Timer::new(device)?, Timer::new(device)?, Timer::new(device)?],
            begun: 0,
            read: 0,
        })
    }

    fn timer(&self, step: usize) -> &Timer {
        &self.timers[step % self.timers.len()]
    }

    /// Marks the beginning of a step; at most [`DEPTH`] are begun and not yet read.
    pub fn begin(&self, device: &Device) -> Result<(), CudaError> {
        self.timer(self.begun).start(device)
    }

    /// Marks the end of the step that was begun.
    pub fn end(&mut self, device: &Device) -> Result<(), CudaError> {
        self.timer(self.begun).stop(device)?;
        self.begun += 1;
        Ok(())
    }

    /// Whether the oldest step that was not read has ended.
    pub fn is_done(&self) -> bool {
        self.timer(self.read).has_stopped()
    }

    /// Waits for the oldest step that was not read.
    pub fn read(&mut self) -> Result<Took, CudaError> {
        let timer = self.timer(self.read);
        let elapsed = timer.elapsed()?;
        let before = self.read.checked_sub(1).map(|step| self.timer(step));
        let gap = before.map(|before| before.until(timer)).transpose()?;
        self.read += 1;
        Ok(Took { elapsed, gap })
    }
}
