use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    net::{
        self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown,
        sockopt::{self, Timeout},
    },
};

/// A connected stream socket of any family.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

/// Calls again while a signal interrupts.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

impl Socket {
    /// Bounds every wait to read and to write; a wait that is over is [`io::ErrorKind::WouldBlock`].
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, read)?;
        Ok(sockopt::set_socket_timeout(&self.0, Timeout::Send, write)?)
    }

    /// Reads at least one byte, into the first buffer first.
    pub fn read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match retry(|| rustix::io::readv(&self.0, buffers))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    /// Fills `bytes` before `deadline`, however slowly the peer dribbles.
    pub fn read_by(&self, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sockopt::set_socket_timeout(&self.0, Timeout::Recv, Some(left))?;
            let read = self.read(&mut [IoSliceMut::new(bytes)])?;
            bytes = &mut bytes[read..];
        }
        Ok(())
    }

    /// Reads what is there, perhaps nothing, without waiting.
    pub fn try_read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut control = RecvAncillaryBuffer::default();
        match retry(|| net::recvmsg(&self.0, buffers, &mut control, RecvFlags::DONTWAIT)) {
            Ok(read) if read.bytes == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(read.bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes `head`, then `body`.
    pub fn write(&self, mut head: &[u8], mut body: &[u8]) -> io::Result<()> {
        while !(head.is_empty() && body.is_empty()) {
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            let mut control = SendAncillaryBuffer::default();
            let sent = retry(|| net::sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL))?;
            let of_head = sent.min(head.len());
            (head, body) = (&head[of_head..], &body[sent - of_head..]);
        }
        Ok(())
    }

    /// Writes a small message without waiting.
    ///
    /// # Errors
    /// Also if the peer has left so much unread that it does not fit.
    pub fn try_write(&self, message: &[u8]) -> io::Result<()> {
        let sent = retry(|| net::send(&self.0, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Writes a message and, with it, a descriptor. Unix sockets only.
    pub fn write_with(&self, message: &[u8], descriptor: &OwnedFd) -> io::Result<()> {
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent =
            retry(|| net::sendmsg(&self.0, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL))?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads a message that was written at once, and the descriptor that may have come with it.
    pub fn read_with(&self, message: &mut [u8]) -> io::Result<Option<OwnedFd>> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let length = message.len();
        let mut parts = [IoSliceMut::new(message)];
        let read = retry(|| net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))?.bytes;
        if read != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        }))
    }

    /// Ends both directions: whoever waits on this socket wakes.
    pub fn shutdown(&self) {
        // It may have ended already.
        let _ = net::shutdown(&self.0, Shutdown::Both);
    }

    /// A second handle to the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

/// Polled for so long before a thread sleeps: on a virtual machine, being woken takes longer than a page does.
const POLL: Duration = Duration::from_micros(50);
/// Who had to wait for so long does not poll the next time.
const STREAMING: Duration = Duration::from_micros(200);

/// Waits of one reader. While bytes come without pause it looks for the next ones for a moment before it sleeps, and
/// leaves the core to whoever wants it meanwhile.
#[derive(Debug, Default)]
pub(super) struct Waits {
    streaming: bool,
}

impl Waits {
    /// As [`Socket::read`].
    pub fn read(&mut self, socket: &Socket, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let began = Instant::now();
        while self.streaming && began.elapsed() < POLL {
            match socket.try_read(buffers)? {
                0 => thread::yield_now(),
                read => return Ok(read),
            }
        }
        let read = socket.read(buffers)?;
        self.streaming = began.elapsed() < STREAMING;
        Ok(read)
    }
}
