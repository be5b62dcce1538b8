//! The receiver's end of a connection, on a thread of its own.

use std::{
    io::{self, IoSliceMut},
    sync::Arc,
    thread,
};

use super::{
    GrantEnd, LinkConfig, SlotArena, Span,
    arena::{Claimed, Stop, Stream},
    bodies::Bodies,
    checksum::checksum,
    handshake,
    ledger::Piece,
    socket::{Socket, Waits},
    wire::{Frame, seed},
};

/// Frames read at once where they carry no layers.
const FRAMES: usize = 64;
/// Bytes discarded at once.
const DISCARD: usize = 16 << 10;

/// Lets a writer in and receives until it can store nothing more.
pub(super) fn serve(socket: &Socket, arena: &Arc<SlotArena>, link: &LinkConfig, bodies: Bodies) {
    let mut stream = match handshake::admit(socket, arena, link, bodies) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "kv writer refused"),
    };
    // Silence on the same host means nothing: the kernel tells when the writer ends.
    let idle = (!bodies.are_stored()).then_some(link.idle);
    let mut frames = Frames::new(socket, bodies);
    let end = match socket.set_timeouts(idle, Some(link.stall)) {
        Ok(()) => receive(&mut frames, arena, &stream, bodies),
        Err(_) => GrantEnd::Gone,
    };
    tracing::debug!(epoch = %stream.epoch(), ?end, "kv writer ended");
    stream.retire(end);
    if bodies.are_stored() && end != GrantEnd::Closed {
        // Until it ends the writer might store.
        while socket.read(&mut [IoSliceMut::new(&mut [0; DISCARD])]).is_ok() {}
        if bodies == Bodies::Device {
            thread::sleep(link.teardown);
        }
    }
}

fn receive(frames: &mut Frames<'_>, arena: &SlotArena, stream: &Stream, bodies: Bodies) -> GrantEnd {
    // Frames of layers in device memory, which is asked about many at once.
    let mut unchecked = Vec::new();
    let end = loop {
        if !frames.is_ahead()
            && let Err(end) = check(arena, &mut unchecked)
        {
            break end;
        }
        let Ok(header) = frames.header() else { break GrantEnd::Gone };
        match Frame::decode(&header) {
            Some(Frame::Close { epoch }) if epoch == stream.epoch() => break GrantEnd::Closed,
            Some(frame @ Frame::Layers { epoch, .. }) if epoch == stream.epoch() => {
                match layers(frames, stream, bodies, frame) {
                    Ok(claimed) => unchecked.extend(claimed),
                    Err(end) => break end,
                }
            }
            _ => break GrantEnd::Violation,
        }
    };
    check(arena, &mut unchecked).err().unwrap_or(end)
}

/// Lets layers in device memory arrive that are there as they were sent.
fn check(arena: &SlotArena, unchecked: &mut Vec<(Claimed<'_>, Span, u64)>) -> Result<(), GrantEnd> {
    let Some(slab) = arena.device().filter(|_| !unchecked.is_empty()) else { return Ok(()) };
    let spans: Vec<Span> = unchecked.iter().map(|(_, span, _)| *span).collect();
    let found = slab.checksums(&spans).map_err(|error| {
        tracing::error!(%error, "device memory cannot be read");
        GrantEnd::Gone
    })?;
    for ((claimed, _, sent), found) in unchecked.drain(..).zip(found) {
        if sent != found {
            return Err(GrantEnd::Corrupt);
        }
        claimed.arrived();
    }
    Ok(())
}

/// Receives the layers of one frame; those in device memory are yet to be checked.
fn layers<'a>(
    frames: &mut Frames<'_>,
    stream: &'a Stream,
    bodies: Bodies,
    frame: Frame,
) -> Result<Option<(Claimed<'a>, Span, u64)>, GrantEnd> {
    let Frame::Layers { epoch, index, layer, length, checksum: sent } = frame else { return Ok(None) };
    let layer_bytes = stream.layout().layer_bytes;
    if !length.is_multiple_of(layer_bytes) {
        return Err(GrantEnd::Violation);
    }
    let claimed = stream.claim(Piece { index, layer, layers: length / layer_bytes });
    let mut claimed = match claimed {
        Ok(Some(claimed)) => claimed,
        Ok(None) if bodies.are_stored() => return Ok(None),
        Ok(None) => return frames.discard(length as usize).map(|()| None).map_err(|_| GrantEnd::Gone),
        Err(Stop::Over) => return Err(GrantEnd::Gone),
        Err(Stop::Violation) => return Err(GrantEnd::Violation),
    };
    if bodies == Bodies::Device {
        let span = claimed.span(seed(epoch, index, layer));
        return Ok(Some((claimed, span, sent)));
    }
    if bodies == Bodies::Inline {
        frames.body(claimed.bytes_mut()).map_err(|_| GrantEnd::Gone)?;
    }
    if checksum(epoch, index, layer, claimed.bytes()) != sent {
        return Err(GrantEnd::Corrupt);
    }
    claimed.arrived();
    Ok(None)
}

/// Takes a byte stream apart into headers and bodies.
struct Frames<'a> {
    socket: &'a Socket,
    waits: Waits,
    /// Headers that were read ahead. With inline bodies it has room for one, so that no body is copied.
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
}

impl<'a> Frames<'a> {
    fn new(socket: &'a Socket, bodies: Bodies) -> Self {
        let frames = if bodies.are_stored() { FRAMES } else { 1 };
        Self { socket, waits: Waits::default(), ahead: vec![0; frames * Frame::BYTES].into(), from: 0, to: 0 }
    }

    /// Whether another header was read already.
    fn is_ahead(&self) -> bool {
        self.to - self.from >= Frame::BYTES
    }

    fn header(&mut self) -> io::Result<[u8; Frame::BYTES]> {
        loop {
            if let Some(header) = self.ahead[self.from..self.to].first_chunk() {
                self.from += Frame::BYTES;
                return Ok(*header);
            }
            self.ahead.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            let rest = IoSliceMut::new(&mut self.ahead[self.to..]);
            self.to += self.waits.read(self.socket, &mut [rest])?;
        }
    }

    /// Fills `body`, and reads ahead what the same call gives.
    fn body(&mut self, body: &mut [u8]) -> io::Result<()> {
        let mut filled = body.len().min(self.to - self.from);
        body[..filled].copy_from_slice(&self.ahead[self.from..][..filled]);
        self.from += filled;
        while filled < body.len() {
            let rest = &mut body[filled..];
            let wanted = rest.len();
            let buffers = &mut [IoSliceMut::new(rest), IoSliceMut::new(&mut self.ahead)];
            let read = self.waits.read(self.socket, buffers)?;
            filled += read.min(wanted);
            (self.from, self.to) = (0, read.saturating_sub(wanted));
        }
        Ok(())
    }

    fn discard(&mut self, mut length: usize) -> io::Result<()> {
        let mut bytes = [0; DISCARD];
        while length > 0 {
            let part = length.min(DISCARD);
            self.body(&mut bytes[..part])?;
            length -= part;
        }
        Ok(())
    }
}
