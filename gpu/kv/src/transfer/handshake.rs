//! Both ends prove that they know the cluster's key before anything else is said.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{
    DeviceHandle, Epoch, LinkConfig, OpenError, SlotArena,
    arena::Stream,
    bodies::Bodies,
    socket::Socket,
    wire::{Challenge, Hello, Welcome},
};

/// Lets a writer in: its connection to the grant that it names.
///
/// # Errors
/// If the writer does not know the key, names no grant that takes it, or is too slow.
pub(super) fn admit(
    socket: &Socket,
    arena: &Arc<SlotArena>,
    link: &LinkConfig,
    bodies: Bodies,
) -> io::Result<Stream> {
    let deadline = Instant::now() + link.handshake;
    socket.set_timeouts(None, Some(link.handshake))?;
    let challenge = Challenge(rand::random());
    socket.write(&challenge.encode(), &[])?;
    let mut bytes = [0; Hello::BYTES];
    socket.read_by(&mut bytes, deadline)?;
    let refused = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let hello = Hello::decode(&bytes, &link.key, challenge).ok_or_else(|| refused("not of this cluster"))?;
    let Some(stream) = arena.attach(hello.epoch, socket.try_clone()?, bodies) else {
        socket.write(&Welcome::Unknown.encode(&link.key, hello), &[])?;
        return Err(refused("the grant takes no connection"));
    };
    let welcome = Welcome::Open.encode(&link.key, hello);
    match bodies {
        Bodies::Inline => socket.write(&welcome, &[])?,
        Bodies::Shared => socket.write_with(&welcome, arena.region().file())?,
        Bodies::Device => {
            let slab = arena.device().ok_or_else(|| io::Error::other("no slots in device memory"))?;
            socket.write(&welcome, &slab.handle().0)?;
        }
    }
    Ok(stream)
}

/// What leads to the receiver's slots.
pub(super) enum Shared {
    /// Nothing does: bodies travel.
    Nothing,
    File(OwnedFd),
    Device(DeviceHandle),
}

/// Asks a receiver to be let in under `epoch`.
pub(super) fn ask(
    socket: &Socket,
    epoch: Epoch,
    link: &LinkConfig,
    bodies: Bodies,
) -> Result<Shared, OpenError> {
    let deadline = Instant::now() + link.handshake;
    socket.set_timeouts(None, Some(link.handshake))?;
    let mut bytes = [0; Challenge::BYTES];
    socket.read_by(&mut bytes, deadline)?;
    let challenge = Challenge::decode(&bytes).ok_or(OpenError::NotTrusted)?;
    let hello = Hello { epoch, nonce: rand::random() };
    socket.write(&hello.encode(&link.key, challenge), &[])?;
    let mut bytes = [0; Welcome::BYTES];
    let answer = match bodies {
        Bodies::Inline | Bodies::Device => socket.read_by(&mut bytes, deadline).map(|()| None),
        Bodies::Shared => {
            socket.set_timeouts(Some(link.handshake), Some(link.handshake))?;
            socket.read_with(&mut bytes)
        }
    };
    let descriptor = match answer {
        Ok(descriptor) => descriptor,
        // A receiver hangs up on who does not know its key.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(OpenError::NotTrusted),
        Err(error) => return Err(error.into()),
    };
    match Welcome::decode(&bytes, &link.key, hello) {
        Some(Welcome::Open) if bodies == Bodies::Device => {
            let mut handle = [0; DeviceHandle::BYTES];
            socket.read_by(&mut handle, deadline)?;
            Ok(Shared::Device(DeviceHandle(handle)))
        }
        Some(Welcome::Open) => Ok(descriptor.map_or(Shared::Nothing, Shared::File)),
        Some(Welcome::Unknown) => Err(OpenError::Revoked),
        None => Err(OpenError::NotTrusted),
    }
}
