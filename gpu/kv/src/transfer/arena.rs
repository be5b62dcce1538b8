use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use super::{
    DeviceAddress, DeviceSlab, Epoch, Event, GrantEnd, GrantError, PageIndex, SlotCounts, Span,
    bodies::Bodies,
    ledger::{self, Ledger, Memory, Piece},
    region::Region,
    socket::Socket,
    wire::Notice,
};
use crate::{PageLayout, Rearrangement};

/// The staging region and who uses which of its slots.
pub struct SlotArena {
    /// What pages come as: the receiver's own layout first.
    forms: Vec<Form>,
    slot_bytes: u64,
    region: Region,
    /// The same slots in device memory, where a transport has such.
    device: OnceLock<Arc<dyn DeviceSlab>>,
    state: Mutex<State>,
    on_event: Box<dyn Fn(Event) + Send + Sync>,
}

/// A layout of pages that land here.
pub(super) struct Form {
    pub layout: PageLayout,
    /// How they become pages of the receiver, if they are not.
    pub rearrangement: Option<Rearrangement>,
}

struct State {
    ledger: Ledger,
    /// The connections of each grant, in the order they came.
    peers: HashMap<Epoch, Vec<Arc<Peer>>>,
}

/// The way back to a writer.
struct Peer {
    socket: Socket,
    /// The writer stores by itself: when it stops shows only in the end of the connection, so nobody here ends it.
    remote: bool,
}

impl Peer {
    fn tell(&self, notice: Notice) {
        if self.socket.try_write(&notice.encode()).is_err() {
            // It is gone, or left more notices unread than it may have pages.
            self.cut();
        }
    }

    fn cut(&self) {
        if !self.remote {
            self.socket.shutdown();
        }
    }
}

impl SlotArena {
    /// Maps `slots` slots for pages of any of the forms, of which there is one at least.
    pub(super) fn new(
        forms: Vec<Form>,
        slots: u32,
        slots_per_grant: u32,
        on_event: Box<dyn Fn(Event) + Send + Sync>,
    ) -> io::Result<Self> {
        let slot_bytes = forms.iter().map(|form| form.layout.page_bytes()).max().unwrap_or(0);
        let bytes = slot_bytes.checked_mul(u64::from(slots));
        let region = Region::create(bytes.ok_or(io::ErrorKind::OutOfMemory)?)?;
        let ledger = Ledger::new(forms[0].layout.layers, slots, slots_per_grant);
        let state = Mutex::new(State { ledger, peers: HashMap::new() });
        Ok(Self { forms, slot_bytes, region, device: OnceLock::new(), state, on_event })
    }

    pub(super) fn forms(&self) -> &[Form] {
        &self.forms
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Of all slots together in device memory.
    pub(super) fn device_bytes(&self) -> u64 {
        u64::from(self.counts().total()) * self.stride(Memory::Device)
    }

    /// Has slots in a slab of [`SlotArena::device_bytes`] as well: pages that land on the host go on to these.
    pub(super) fn keep_in(&self, slab: Arc<dyn DeviceSlab>) {
        // One transport has device memory; a second slab would only lie idle.
        let _ = self.device.set(slab);
    }

    pub(super) fn device(&self) -> Option<&Arc<dyn DeviceSlab>> {
        self.device.get()
    }

    pub(super) fn lend(
        &self,
        pages: u32,
        writer: &str,
        form: usize,
    ) -> Result<(Epoch, Vec<u32>), GrantError> {
        let epoch = Epoch(rand::random());
        Ok((epoch, self.state.lock().ledger.lend(epoch, pages, writer, form)?))
    }

    /// A connection that proved to be for `epoch`; None if the grant takes no more.
    pub(super) fn attach(self: &Arc<Self>, epoch: Epoch, socket: Socket, bodies: Bodies) -> Option<Stream> {
        let (remote, memory) = (bodies.are_stored(), bodies.memory());
        let peer = Arc::new(Peer { socket, remote });
        let mut state = self.state.lock();
        let form = state.ledger.form(epoch)?;
        // What is in device memory cannot be rearranged.
        let fits = memory == Memory::Host || self.forms[form].rearrangement.is_none();
        if !fits || !state.ledger.attach(epoch, remote, memory) {
            return None;
        }
        state.peers.entry(epoch).or_default().push(peer.clone());
        Some(Stream { arena: self.clone(), epoch, form, peer, memory, retired: false })
    }

    /// Ends a grant; `closed` says that its writer will store nothing more.
    pub(super) fn revoke(&self, epoch: Epoch, closed: bool) {
        let mut state = self.state.lock();
        let open = state.ledger.is_open(epoch);
        state.ledger.revoke(epoch, closed);
        let peers = state.peers.get(&epoch).filter(|_| open).cloned();
        drop(state);
        for peer in peers.unwrap_or_default() {
            peer.tell(Notice::Revoked);
            peer.cut();
        }
    }

    pub(super) fn epochs(&self, writer: &str) -> Vec<Epoch> {
        self.state.lock().ledger.epochs(Some(writer))
    }

    /// Ends all grants and all connections. No slot is lent again.
    pub(super) fn shut(&self) {
        let epochs = self.state.lock().ledger.epochs(None);
        for epoch in epochs {
            self.revoke(epoch, false);
        }
        for peer in self.state.lock().peers.values().flatten() {
            peer.socket.shutdown();
        }
    }

    pub(super) fn counts(&self) -> SlotCounts {
        self.state.lock().ledger.counts()
    }

    /// Bytes from one slot to the next.
    fn stride(&self, memory: Memory) -> u64 {
        match memory {
            Memory::Host => self.slot_bytes,
            // What lands there is never of another layout.
            Memory::Device => self.forms[0].layout.page_bytes(),
        }
    }

    fn at(&self, memory: Memory, slot: u32) -> usize {
        slot as usize * self.stride(memory) as usize
    }

    fn take(&self, epoch: Epoch, index: PageIndex) {
        let mut state = self.state.lock();
        let again = state.ledger.taken(epoch, index);
        let peer = state.peers.get(&epoch).and_then(|peers| peers.first()).filter(|_| again).cloned();
        drop(state);
        if let Some(peer) = peer {
            peer.tell(Notice::Taken(index));
        }
    }
}

impl fmt::Debug for SlotArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slots of {}", self.forms[0].layout)
    }
}

/// One connection of one grant. Dropping it says that its writer stores nothing more through it.
pub(super) struct Stream {
    arena: Arc<SlotArena>,
    epoch: Epoch,
    form: usize,
    peer: Arc<Peer>,
    memory: Memory,
    retired: bool,
}

/// Why a connection lands nothing more.
pub(super) enum Stop {
    Over,
    Violation,
}

impl Stream {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Of the pages that come.
    pub fn layout(&self) -> &PageLayout {
        &self.arena.forms[self.form].layout
    }

    /// The place for `piece`; None if it came before.
    pub fn claim(&self, piece: Piece) -> Result<Option<Claimed<'_>>, Stop> {
        match self.arena.state.lock().ledger.claim(self.epoch, piece) {
            ledger::Claim::Store(slot) => Ok(Some(Claimed { stream: self, piece, slot, arrived: false })),
            ledger::Claim::Skip => Ok(None),
            ledger::Claim::Over => Err(Stop::Over),
            ledger::Claim::Violation => Err(Stop::Violation),
        }
    }

    /// Nothing more will land through this connection.
    pub fn retire(&mut self, end: GrantEnd) {
        if std::mem::replace(&mut self.retired, true) {
            return;
        }
        let (epoch, arena) = (self.epoch, &self.arena);
        let mut state = arena.state.lock();
        let told = state.ledger.retired(epoch, end);
        let over = !state.ledger.is_open(epoch);
        let mut peers = state.peers.remove(&epoch).unwrap_or_default();
        peers.retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        if !peers.is_empty() {
            state.peers.insert(epoch, peers.clone());
        }
        drop(state);
        let notice = match end {
            GrantEnd::Finished | GrantEnd::Closed => Some(Notice::Closed),
            GrantEnd::Gone => None,
            GrantEnd::Corrupt => Some(Notice::Corrupt),
            GrantEnd::Violation => Some(Notice::Violation),
        };
        if let Some(notice) = notice {
            self.peer.tell(notice);
        }
        for peer in peers.iter().filter(|_| over) {
            peer.cut();
        }
        if let Some(end) = told {
            (arena.on_event)(Event::Ended { epoch, end });
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.retire(GrantEnd::Gone);
        if self.peer.remote {
            self.arena.state.lock().ledger.detached(self.epoch);
        }
    }
}

/// Layers of a slot that one frame is for, and no other until this is dropped.
pub(super) struct Claimed<'a> {
    stream: &'a Stream,
    piece: Piece,
    slot: u32,
    arrived: bool,
}

impl Claimed<'_> {
    fn range(&self) -> (usize, usize) {
        let layer_bytes = self.stream.layout().layer_bytes as usize;
        let before = self.piece.layer as usize * layer_bytes;
        let Stream { arena, memory, .. } = self.stream;
        (arena.at(*memory, self.slot) + before, self.piece.layers as usize * layer_bytes)
    }

    /// Where they are in device memory.
    pub fn span(&self, seed: u64) -> Span {
        let (at, bytes) = self.range();
        Span { at: at as u64, bytes: bytes as u64, seed }
    }

    pub fn bytes(&self) -> &[u8] {
        let (at, len) = self.range();
        // SAFETY: the ledger gave these layers to this claim alone. Where the writer stores by itself it has proved
        // that it is of this cluster, and such a writer is done with a layer before it sends the layer's frame.
        unsafe { self.stream.arena.region.bytes(at, len) }
    }

    /// For a writer that does not store by itself.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.stream.peer.remote, "the writer stores by itself");
        let (at, len) = self.range();
        // SAFETY: the ledger gave these layers to this claim alone, and `self` is borrowed for as long.
        unsafe { self.stream.arena.region.bytes_mut(at, len) }
    }

    /// The bytes are there and as they were sent.
    pub fn arrived(mut self) {
        self.arrived = true;
        let Stream { arena, epoch, form, memory, .. } = self.stream;
        if !arena.state.lock().ledger.arrived(*epoch, self.piece) {
            return;
        }
        let mut page = LandedPage {
            arena: arena.clone(),
            epoch: *epoch,
            index: self.piece.index,
            slot: self.slot,
            form: *form,
            memory: *memory,
            rearranged: None,
        };
        let rearrangement = arena.forms[*form].rearrangement.as_ref();
        page.rearranged = rearrangement.map(|rearrangement| rearrangement.page(page.in_slot()));
        page.move_to_device();
        (arena.on_event)(Event::Landed(page));
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if !self.arrived {
            self.stream.arena.state.lock().ledger.abandoned(self.stream.epoch, self.piece);
        }
    }
}

/// A page that landed, in its slot: in device memory, if the receiver has slots there. Dropping it frees the slot for the
/// grant's next page.
#[derive(Debug)]
pub struct LandedPage {
    arena: Arc<SlotArena>,
    epoch: Epoch,
    index: PageIndex,
    slot: u32,
    form: usize,
    memory: Memory,
    /// The page as the receiver's layout has it, where it came in another.
    rearranged: Option<Vec<u8>>,
}

impl LandedPage {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn index(&self) -> PageIndex {
        self.index
    }

    /// Where it is, if that is in device memory.
    pub fn address(&self) -> Option<DeviceAddress> {
        let slab = self.arena.device().filter(|_| self.memory == Memory::Device)?;
        Some(slab.address().at(self.arena.at(Memory::Device, self.slot) as u64))
    }

    /// The page in the receiver's layout, layer after layer.
    ///
    /// # Panics
    /// If it is in device memory.
    pub fn bytes(&self) -> &[u8] {
        self.rearranged.as_deref().unwrap_or_else(|| self.in_slot())
    }

    /// Copies a page on the host to the same slot in device memory, where there is such.
    fn move_to_device(&mut self) {
        let Some(slab) = self.arena.device().filter(|_| self.memory == Memory::Host) else { return };
        match slab.store(self.arena.at(Memory::Device, self.slot) as u64, self.bytes()) {
            Ok(()) => (self.memory, self.rearranged) = (Memory::Device, None),
            Err(error) => tracing::error!(%error, "a page that landed stays on the host"),
        }
    }

    /// The page as it came.
    fn in_slot(&self) -> &[u8] {
        assert_eq!(self.memory, Memory::Host, "the page is in device memory");
        let bytes = self.arena.forms[self.form].layout.page_bytes();
        // SAFETY: the ledger lends the slot to no page while this one is not taken, and a writer that stores by itself
        // stores to a page's slot only before the page's last frame.
        unsafe { self.arena.region.bytes(self.arena.at(Memory::Host, self.slot), bytes as usize) }
    }
}

impl Drop for LandedPage {
    fn drop(&mut self) {
        self.arena.take(self.epoch, self.index);
    }
}
