//! The writer's end, the same for all transports: who stores where, and what the receiver has told.

use std::{
    io::{self, IoSliceMut},
    sync::Arc,
    time::Duration,
};

use super::{
    DeviceSlab, DeviceWriter, Epoch, Grant, OpenError, PageIndex, PageWriter, Place, WriteError,
    checksum::{self, checksum},
    device_checksum,
    region::Region,
    socket::{Socket, Waits},
    turn::Turn,
    wire::{Frame, Notice, seed},
};

/// Most bytes of layers in a frame, if one layer is not larger: who reads them twice has them in its cache the second
/// time.
const FRAME_BYTES: u32 = 256 << 10;
/// Layers that follow each other on a connection are sent together once they have so many bytes, or with the last of
/// their page. Nobody waits for a part of a page, and each frame costs both ends a system call.
const RUN_BYTES: usize = 64 << 10;
/// Layers in memory that is mapped are told of once they have so many bytes, or with the last of their page: the
/// receiver checks them while others are being copied.
const TOLD_BYTES: usize = 256 << 10;
/// Notices read at once.
const NOTICES: usize = 64;

/// How layers reach their slots.
pub(super) enum Store {
    /// Behind their frame.
    Inline,
    /// By a copy into memory that both ends map.
    Region(Arc<Region>),
    /// Likewise, of a device.
    Device(Arc<dyn DeviceSlab>),
}

impl Store {
    /// Bytes of the receiver's slots, if they are mapped.
    fn len(&self) -> Option<u64> {
        match self {
            Self::Inline => None,
            Self::Region(region) => Some(region.len() as u64),
            Self::Device(slab) => Some(slab.bytes()),
        }
    }
}

/// A connection and what was read of a notice.
struct Line {
    socket: Socket,
    waits: Waits,
    notices: [u8; NOTICES * Notice::BYTES],
    read: usize,
    /// Frames of layers in memory that is mapped, not yet sent: at most those of a window of pages.
    frames: Vec<u8>,
}

pub(super) struct Pusher {
    epoch: Epoch,
    pages: u32,
    layers: u32,
    layer_bytes: u32,
    slot_bytes: u64,
    slots: Vec<u32>,
    places: Vec<Turn>,
    lines: Vec<Line>,
    store: Store,
    stall: Duration,
    /// Lines on which the receiver confirmed the end.
    confirmed: usize,
    /// Bytes that the receiver may check once it is told.
    untold: usize,
    /// Nothing may be sent any more.
    over: bool,
}

impl Pusher {
    /// Pushes over `sockets`, layers by way of `store`.
    ///
    /// # Errors
    /// If the grant makes no sense: it comes from another process.
    pub fn new(
        grant: &Grant,
        sockets: Vec<Socket>,
        store: Store,
        stall: Duration,
    ) -> Result<Self, OpenError> {
        let layout = &grant.layout;
        let (held, page_bytes) = (store.len().unwrap_or(u64::MAX), layout.page_bytes());
        let slot_bytes = if matches!(store, Store::Device(_)) { page_bytes } else { grant.slot_bytes };
        let fits = |slot: &u32| (u64::from(*slot) + 1).checked_mul(slot_bytes).is_some_and(|end| end <= held);
        if page_bytes == 0
            || page_bytes > slot_bytes
            || grant.slots.is_empty()
            || !grant.slots.iter().all(fits)
        {
            return Err(OpenError::Unreachable(
                "the grant names slots that the receiver does not have".to_owned(),
            ));
        }
        for socket in &sockets {
            socket.set_timeouts(Some(stall), Some(stall))?;
        }
        let line = |socket| Line {
            socket,
            waits: Waits::default(),
            notices: [0; NOTICES * Notice::BYTES],
            read: 0,
            frames: Vec::new(),
        };
        Ok(Self {
            epoch: grant.epoch,
            pages: grant.pages,
            layers: layout.layers,
            layer_bytes: layout.layer_bytes,
            slot_bytes,
            slots: grant.slots.clone(),
            places: (0..grant.window()).map(|page| Turn::new(page, layout.layers)).collect(),
            lines: sockets.into_iter().map(line).collect(),
            store,
            stall,
            confirmed: 0,
            untold: 0,
            over: false,
        })
    }

    fn place_of(&self, index: PageIndex) -> usize {
        index.0 as usize % self.places.len()
    }

    /// Waits until the slot of page `index` is for it. False if the page was taken already.
    fn wait_turn(&mut self, index: PageIndex) -> Result<bool, WriteError> {
        let at = self.place_of(index);
        let Turn { page, missing, .. } = self.places[at];
        let next = page.saturating_add(self.places.len() as u32);
        if index.0 > next || (index.0 == next && missing > 0) {
            let before = PageIndex(if missing > 0 { page } else { next });
            return Err(WriteError::OutOfTurn { page: index, before });
        }
        if missing == self.layers {
            self.poll()?;
        }
        if self.places[at].page < index.0 {
            self.tell()?;
        }
        while self.places[at].page < index.0 {
            self.hear(0, true)?;
        }
        Ok(self.places[at].page == index.0)
    }

    /// Takes in what the receiver has told, without waiting.
    fn poll(&mut self) -> Result<(), WriteError> {
        (0..self.lines.len()).try_for_each(|line| self.hear(line, false))
    }

    /// Reads notices of a line; waits for one if told to.
    fn hear(&mut self, line: usize, wait: bool) -> Result<(), WriteError> {
        let Line { socket, waits, notices, read, .. } = &mut self.lines[line];
        let rest = &mut [IoSliceMut::new(&mut notices[*read..])];
        let heard = if wait { waits.read(socket, rest) } else { socket.try_read(rest) };
        *read += match heard {
            Ok(heard) => heard,
            Err(error) => return Err(self.lost(error)),
        };
        let whole = *read / Notice::BYTES * Notice::BYTES;
        let (heard, have) = (*notices, *read);
        notices.copy_within(whole..have, 0);
        *read = have - whole;
        let (heard, _) = heard[..whole].as_chunks();
        heard.iter().try_for_each(|notice| self.heed(Notice::decode(notice)))
    }

    fn heed(&mut self, notice: Option<Notice>) -> Result<(), WriteError> {
        match notice {
            Some(Notice::Taken(index)) => {
                let (at, window) = (self.place_of(index), self.places.len() as u32);
                let place = &mut self.places[at];
                if place.page == index.0 && place.missing == 0 {
                    place.turn_to(place.page.saturating_add(window));
                    return Ok(());
                }
                Err(self
                    .lost(io::Error::new(io::ErrorKind::InvalidData, "it took a page that was not pushed")))
            }
            Some(Notice::Closed) => {
                self.confirmed += 1;
                Ok(())
            }
            Some(Notice::Revoked) => Err(self.fail(WriteError::Revoked)),
            Some(Notice::Corrupt) => Err(self.fail(WriteError::Corrupt)),
            Some(Notice::Violation) | None => {
                Err(self
                    .lost(io::Error::new(io::ErrorKind::InvalidData, "it does not keep the same protocol")))
            }
        }
    }

    fn still_open(&self) -> Result<(), WriteError> {
        if self.over { Err(WriteError::Gone(io::ErrorKind::NotConnected.into())) } else { Ok(()) }
    }

    fn fail(&mut self, error: WriteError) -> WriteError {
        self.over = true;
        error
    }

    /// Why a connection broke: what the receiver told before counts more than the break.
    fn lost(&mut self, error: io::Error) -> WriteError {
        if !std::mem::replace(&mut self.over, true)
            && let Err(told @ (WriteError::Revoked | WriteError::Corrupt)) = self.poll()
        {
            return told;
        }
        match error.kind() {
            io::ErrorKind::WouldBlock => WriteError::Stalled(self.stall),
            _ => WriteError::Gone(error),
        }
    }

    /// Pushes layers that were not pushed before.
    fn push(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError> {
        let at = self.place_of(index);
        let offset = self.offset(at) + layer as usize * self.layer_bytes as usize;
        let sum = match &self.store {
            Store::Inline => return self.push_inline(index, layer, bytes),
            Store::Region(region) => {
                // SAFETY: the slot is lent to this grant, of which this is the one writer, and its present page was not
                // told to be complete. The receiver reads the layers only after their frame, and lends the slot to
                // nobody else until this writer's connection has ended.
                let slot = unsafe { region.bytes_mut(offset, bytes.len()) };
                self.untold += bytes.len();
                checksum::copy(self.epoch, index, layer, bytes, slot)
            }
            Store::Device(slab) => match slab.store(offset as u64, bytes) {
                Ok(()) => device_checksum(seed(self.epoch, index, layer), bytes),
                Err(error) => return Err(self.fail(WriteError::Gone(error))),
            },
        };
        let frame = self.frame(index, layer, bytes.len() as u32, sum);
        self.lines[0].frames.extend_from_slice(&frame);
        if self.places[at].missing == 0 || self.untold >= TOLD_BYTES { self.tell() } else { Ok(()) }
    }

    /// Pushes layers behind their frame, perhaps with those that follow.
    fn push_inline(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError> {
        let (at, count) = (self.place_of(index), bytes.len() as u32 / self.layer_bytes);
        let place = &mut self.places[at];
        place.note(layer, count);
        let complete = place.missing == 0;
        if place.run_from + place.run.len() as u32 / self.layer_bytes != layer {
            self.send_run(at)?;
        }
        let place = &mut self.places[at];
        if place.run.is_empty() {
            if complete || bytes.len() >= RUN_BYTES {
                return self.send(index, layer, bytes);
            }
            place.run_from = layer;
        }
        place.run.extend_from_slice(bytes);
        if complete || place.run.len() >= RUN_BYTES { self.send_run(at) } else { Ok(()) }
    }

    /// Sends the layers that wait at a place.
    fn send_run(&mut self, at: usize) -> Result<(), WriteError> {
        let place = &mut self.places[at];
        let (index, from, mut run) = (PageIndex(place.page), place.run_from, std::mem::take(&mut place.run));
        let sent = if run.is_empty() { Ok(()) } else { self.send(index, from, &run) };
        run.clear();
        self.places[at].run = run;
        sent
    }

    fn send(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError> {
        let (epoch, length) = (self.epoch, bytes.len() as u32);
        let checksum = checksum(epoch, index, layer, bytes);
        let frame = Frame::Layers { epoch, index, layer, length, checksum }.encode();
        let line = index.0 as usize % self.lines.len();
        self.lines[line].socket.write(&frame, bytes).map_err(|error| self.lost(error))
    }

    /// Where a slot lies among the receiver's, in bytes.
    fn offset(&self, at: usize) -> usize {
        self.slots[at] as usize * self.slot_bytes as usize
    }

    /// Notes layers as pushed, and makes their frame.
    fn frame(&mut self, index: PageIndex, layer: u32, length: u32, checksum: u64) -> [u8; Frame::BYTES] {
        let (at, count) = (self.place_of(index), length / self.layer_bytes);
        self.places[at].note(layer, count);
        Frame::Layers { epoch: self.epoch, index, layer, length, checksum }.encode()
    }

    /// Sends all that waits.
    fn tell(&mut self) -> Result<(), WriteError> {
        self.untold = 0;
        for line in &mut self.lines {
            let sent = line.socket.write(&line.frames, &[]);
            line.frames.clear();
            if let Err(error) = sent {
                return Err(self.lost(error));
            }
        }
        (0..self.places.len()).try_for_each(|at| self.send_run(at))
    }
}

impl PageWriter for Pusher {
    fn window(&self) -> u32 {
        self.places.len() as u32
    }

    fn write(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError> {
        let layer_bytes = self.layer_bytes as usize;
        let count = (bytes.len() / layer_bytes) as u32;
        assert!(bytes.len().is_multiple_of(layer_bytes), "{} bytes are no whole layers", bytes.len());
        assert!(index.0 < self.pages && layer + count <= self.layers, "outside the grant");
        self.still_open()?;
        if !self.wait_turn(index)? {
            return Ok(());
        }
        let (at, most) = (self.place_of(index), (FRAME_BYTES / self.layer_bytes).max(1));
        let end = layer + count;
        let mut from = layer;
        while from < end {
            let pushed = &self.places[at].pushed;
            if pushed[from as usize] {
                from += 1;
                continue;
            }
            let to = (from + 1..end.min(from + most)).find(|layer| pushed[*layer as usize]);
            let to = to.unwrap_or(end.min(from + most));
            let [start, stop] = [from, to].map(|at| (at - layer) as usize * layer_bytes);
            self.push(index, from, &bytes[start..stop])?;
            from = to;
        }
        Ok(())
    }

    fn device(&mut self) -> Option<&mut dyn DeviceWriter> {
        if matches!(self.store, Store::Device(_)) { Some(self) } else { None }
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.still_open()?;
        self.tell()?;
        let close = Frame::Close { epoch: self.epoch }.encode();
        for line in 0..self.lines.len() {
            self.lines[line].socket.write(&close, &[]).map_err(|error| self.lost(error))?;
        }
        for line in 0..self.lines.len() {
            while self.confirmed <= line {
                self.hear(line, true)?;
            }
        }
        self.over = true;
        Ok(())
    }
}

impl DeviceWriter for Pusher {
    fn place(&mut self, index: PageIndex) -> Result<Option<Place>, WriteError> {
        self.still_open()?;
        if !self.wait_turn(index)? {
            return Ok(None);
        }
        let offset = self.offset(self.place_of(index)) as u64;
        let Store::Device(slab) = &self.store else { return Ok(None) };
        Ok(Some(Place { address: slab.address().at(offset), seed: seed(self.epoch, index, 0) }))
    }

    fn stored(&mut self, pages: &[(PageIndex, u64)]) -> Result<(), WriteError> {
        self.still_open()?;
        let length = self.layers * self.layer_bytes;
        for &(index, checksum) in pages {
            let frame = self.frame(index, 0, length, checksum);
            self.lines[0].frames.extend_from_slice(&frame);
        }
        self.tell()
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        if !self.over {
            for line in &self.lines {
                // The end of the connection says the same, less kindly.
                let _ = line.socket.try_write(&Frame::Close { epoch: self.epoch }.encode());
            }
        }
    }
}
