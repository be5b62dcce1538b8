use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    Address, Grant, KvTransport, LinkConfig, Listening, OpenError, PageWriter, SlotArena,
    bodies::Bodies,
    handshake::{self, Shared},
    local,
    pusher::{Pusher, Store},
    region::Region,
    socket::Socket,
};

/// Receivers whose slots a writer keeps mapped from one grant to the next: mapping anew costs a page fault for each
/// 4 KiB.
const MAPPED: usize = 16;
/// Pages through memory that both processes map. Addresses are `shm:` and the path of a unix socket: who can connect
/// to it is on the same host. The memory has no name; a writer that proved itself gets its descriptor over the socket.
///
/// The socket also tells when a writer's process ends: the kernel closes it after the last thread is gone.
pub struct ShmTransport {
    link: LinkConfig,
    folder: PathBuf,
    /// Oldest first.
    mapped: Mutex<Vec<Mapped>>,
}

/// A receiver's memory. Device and inode name it for as long as it is mapped.
struct Mapped {
    /// Of the receiver's socket.
    path: String,
    device: u64,
    inode: u64,
    region: Arc<Region>,
}

impl ShmTransport {
    /// Listens in `folder`, which it creates for this user alone.
    pub fn new(link: LinkConfig, folder: impl Into<PathBuf>) -> Self {
        Self { link, folder: folder.into(), mapped: Mutex::new(Vec::new()) }
    }

    /// The mapping of the memory behind `file`, perhaps one that an earlier grant made.
    fn map(&self, path: &str, file: OwnedFd) -> io::Result<Arc<Region>> {
        let found = rustix::fs::fstat(&file)?;
        let (device, inode) = (found.st_dev, found.st_ino);
        let mut mapped = self.mapped.lock();
        if let Some(known) = mapped.iter().find(|known| (known.device, known.inode) == (device, inode)) {
            return Ok(known.region.clone());
        }
        let region = Arc::new(Region::open(file)?);
        if mapped.len() == MAPPED {
            mapped.remove(0);
        }
        mapped.push(Mapped { path: path.to_owned(), device, inode, region: region.clone() });
        Ok(region)
    }
}

impl KvTransport for ShmTransport {
    fn scheme(&self) -> &'static str {
        "shm"
    }

    fn listen(&self, arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        local::listen(self.scheme(), &self.folder, arena, self.link.clone(), Bodies::Shared)
    }

    fn open(&self, grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        let path = address.split().1;
        let socket = Socket::from(OwnedFd::from(UnixStream::connect(path)?));
        let Shared::File(file) = handshake::ask(&socket, grant.epoch, &self.link, Bodies::Shared)? else {
            return Err(OpenError::Unreachable("the receiver sent no memory".to_owned()));
        };
        let store = Store::Region(self.map(path, file)?);
        Ok(Box::new(Pusher::new(grant, vec![socket], store, self.link.stall)?))
    }

    fn forget(&self, address: &Address) {
        let path = address.split().1;
        self.mapped.lock().retain(|known| known.path != path);
    }
}
