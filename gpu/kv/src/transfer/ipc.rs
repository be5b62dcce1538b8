use std::{io, os::fd::OwnedFd, os::unix::net::UnixStream, path::PathBuf, sync::Arc};

use parking_lot::Mutex;

use super::{
    Address, DeviceHandle, DeviceMemory, DeviceSlab, Grant, KvTransport, LinkConfig, Listening, OpenError,
    PageWriter, SlotArena,
    bodies::Bodies,
    handshake::{self, Shared},
    local,
    pusher::{Pusher, Store},
    socket::Socket,
};

/// Pages through the memory of a device that both processes map. Addresses are `cuda-ipc:` and the path of a unix socket:
/// who can connect to it is on the same host, and a writer that proved itself gets the handle of the memory over it.
///
/// The writer's device stores by itself: a writer that ends without a word may have a store under way, so that its slots
/// stay out of use for a while longer.
pub struct IpcTransport {
    link: LinkConfig,
    folder: PathBuf,
    memory: Arc<dyn DeviceMemory>,
    mapped: Mutex<Vec<Mapped>>,
}

/// A receiver's slots, kept mapped from one grant to the next: mapping takes longer than a transfer.
struct Mapped {
    /// Of the receiver's socket.
    path: String,
    handle: DeviceHandle,
    slab: Arc<dyn DeviceSlab>,
}

impl IpcTransport {
    /// Listens in `folder`, which it creates for this user alone.
    pub fn new(link: LinkConfig, folder: impl Into<PathBuf>, memory: Arc<dyn DeviceMemory>) -> Self {
        Self { link, folder: folder.into(), memory, mapped: Mutex::new(Vec::new()) }
    }

    fn map(&self, path: &str, handle: DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        let mut mapped = self.mapped.lock();
        if let Some(known) = mapped.iter().find(|known| known.handle == handle && known.path == path) {
            return Ok(known.slab.clone());
        }
        // What is mapped keeps the memory of a receiver that has ended from the device.
        mapped.retain(|known| UnixStream::connect(&known.path).is_ok());
        let slab = self.memory.open(&handle)?;
        mapped.push(Mapped { path: path.to_owned(), handle, slab: slab.clone() });
        Ok(slab)
    }
}

impl KvTransport for IpcTransport {
    fn scheme(&self) -> &'static str {
        "cuda-ipc"
    }

    fn listen(&self, arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        let slab = self.memory.allocate(arena.device_bytes())?;
        // No writer is let in before there are grants.
        let listening =
            local::listen(self.scheme(), &self.folder, arena.clone(), self.link.clone(), Bodies::Device)?;
        arena.keep_in(slab);
        Ok(listening)
    }

    fn open(&self, grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        let path = address.split().1;
        let socket = Socket::from(OwnedFd::from(UnixStream::connect(path)?));
        let Shared::Device(handle) = handshake::ask(&socket, grant.epoch, &self.link, Bodies::Device)? else {
            return Err(OpenError::Unreachable("the receiver sent no handle".to_owned()));
        };
        let store = Store::Device(self.map(path, handle)?);
        Ok(Box::new(Pusher::new(grant, vec![socket], store, self.link.stall)?))
    }

    fn forget(&self, address: &Address) {
        let path = address.split().1;
        self.mapped.lock().retain(|known| known.path != path);
    }
}
