use std::time::Duration;

use cudarc::driver::{CudaEvent, sys::CUevent_flags};

use crate::{CudaError, Device};

/// Two marks on the device's stream and the device time between them.
#[derive(Debug)]
pub struct Timer {
    begin: CudaEvent,
    end: CudaEvent,
}

impl Timer {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let event = || device.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self { begin: event()?, end: event()? })
    }

    pub fn start(&self, device: &Device) -> Result<(), CudaError> {
        Ok(self.begin.record(device.stream())?)
    }

    pub fn stop(&self, device: &Device) -> Result<(), CudaError> {
        Ok(self.end.record(device.stream())?)
    }

    /// Whether the device has passed the second mark. An error shows when it is waited for.
    pub(crate) fn has_stopped(&self) -> bool {
        !matches!(self.end.try_is_complete(), Ok(false))
    }

    /// Waits for the second mark; seconds between the two.
    pub fn seconds(&self) -> Result<f64, CudaError> {
        Ok(self.elapsed()?.as_secs_f64())
    }

    pub(crate) fn elapsed(&self) -> Result<Duration, CudaError> {
        between(&self.begin, &self.end)
    }

    /// Waits for the first mark of `next`; device time from the end of this to it.
    pub(crate) fn until(&self, next: &Self) -> Result<Duration, CudaError> {
        between(&self.end, &next.begin)
    }
}

fn between(begin: &CudaEvent, end: &CudaEvent) -> Result<Duration, CudaError> {
    Ok(Duration::from_secs_f64(f64::from(begin.elapsed_ms(end)?).max(0.0) * 1e-3))
}
