use std::{io, sync::Arc};

use kv::transfer::{DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, HostRoom, Span};

use super::DeviceClock;

/// Memory of a device with a clock that runs while the device is asked for anything: such calls come on threads of
/// transfers, which nobody else watches.
pub(super) struct WatchedMemory {
    memory: Arc<dyn DeviceMemory>,
    clock: Arc<DeviceClock>,
}

impl WatchedMemory {
    pub fn new(memory: Arc<dyn DeviceMemory>, clock: Arc<DeviceClock>) -> Self {
        Self { memory, clock }
    }

    fn slab(
        &self,
        call: impl FnOnce() -> io::Result<Arc<dyn DeviceSlab>>,
    ) -> io::Result<Arc<dyn DeviceSlab>> {
        let slab = self.clock.watch(call)?;
        Ok(Arc::new(WatchedSlab { slab: Some(slab), clock: self.clock.clone() }))
    }
}

impl DeviceMemory for WatchedMemory {
    fn allocate(&self, bytes: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        self.slab(|| self.memory.allocate(bytes))
    }

    fn open(&self, handle: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        self.slab(|| self.memory.open(handle))
    }

    fn room(&self, bytes: usize) -> io::Result<Box<dyn HostRoom>> {
        self.clock.watch(|| self.memory.room(bytes))
    }
}

struct WatchedSlab {
    slab: Option<Arc<dyn DeviceSlab>>,
    clock: Arc<DeviceClock>,
}

impl WatchedSlab {
    fn slab(&self) -> &dyn DeviceSlab {
        self.slab.as_deref().expect("there until it is dropped")
    }
}

impl DeviceSlab for WatchedSlab {
    fn handle(&self) -> DeviceHandle {
        self.slab().handle()
    }

    fn address(&self) -> DeviceAddress {
        self.slab().address()
    }

    fn bytes(&self) -> u64 {
        self.slab().bytes()
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.clock.watch(|| self.slab().store(at, bytes))
    }

    fn checksums(&self, spans: &[Span]) -> io::Result<Vec<u64>> {
        self.clock.watch(|| self.slab().checksums(spans))
    }
}

impl Drop for WatchedSlab {
    /// Unmaps what another process may have left behind.
    fn drop(&mut self) {
        self.clock.watch(|| drop(self.slab.take()));
    }
}
