use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
};

use super::{
    Address, Grant, KvTransport, LinkConfig, Listening, OpenError, PageWriter, SlotArena,
    bodies::Bodies,
    handshake,
    listener::Listener,
    pusher::{Pusher, Store},
    socket::Socket,
};

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

    fn connect(&self, grant: &Grant, address: SocketAddr) -> Result<Socket, OpenError> {
        let stream = TcpStream::connect_timeout(&address, self.link.handshake)?;
        stream.set_nodelay(true)?;
        let socket = Socket::from(OwnedFd::from(stream));
        handshake::ask(&socket, grant.epoch, &self.link, Bodies::Inline)?;
        Ok(socket)
    }
}

impl KvTransport for TcpTransport {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn listen(&self, arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        let listener = TcpListener::bind(self.listen)?;
        let address = Address(format!("tcp://{}", self.advertise.map_or(listener.local_addr(), Ok)?));
        let listener = Listener::start(address, listener.into(), arena, self.link.clone(), Bodies::Inline)?;
        Ok(Box::new(listener))
    }

    fn open(&self, grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        let parsed = address.split().1.strip_prefix("//").and_then(|rest| rest.parse().ok());
        let to = parsed.ok_or_else(|| OpenError::Unreachable(format!("{address} names no ip and port")))?;
        let mut sockets = vec![self.connect(grant, to)?];
        for _ in 1..self.streams {
            // One connection carries everything, if slower.
            let Ok(socket) = self.connect(grant, to) else { break };
            sockets.push(socket);
        }
        Ok(Box::new(Pusher::new(grant, sockets, Store::Inline, self.link.stall)?))
    }
}
