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

    /// Waits for the second mark; seconds between the two.
    pub fn seconds(&self) -> Result<f64, CudaError> {
        Ok(f64::from(self.begin.elapsed_ms(&self.end)?) * 1e-3)
    }
}
