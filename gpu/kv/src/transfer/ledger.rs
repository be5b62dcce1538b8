//! Which slot is lent to whom, and what of it has arrived. No memory, no sockets: every rule of a grant's life is here.

use std::collections::HashMap;

use super::{Epoch, GrantEnd, GrantError, PageIndex, SlotCounts};

/// Connections that one grant may have.
const MAX_STREAMS: u32 = 16;

/// A run of layers of one page: what one frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub index: PageIndex,
    pub layer: u32,
    pub layers: u32,
}

/// In which memory a slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Host,
    Device,
}

/// What to do with a piece that is coming in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is expected in this slot, and from nobody else until [`Ledger::arrived`] or [`Ledger::abandoned`].
    Store(u32),
    /// It arrived before, or is arriving elsewhere.
    Skip,
    /// The grant is over.
    Over,
    /// No writer that keeps the rules sends this.
    Violation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Missing,
    Storing,
    Arrived,
}

/// A slot of a grant and the page that it accepts or holds.
#[derive(Debug)]
struct Place {
    /// None once no page of the grant needs it any more.
    slot: Option<u32>,
    page: u32,
    layers: Vec<Layer>,
    /// All layers arrived while the grant lived, and the page has not been taken yet.
    landed: bool,
}

impl Place {
    fn storing(&self) -> bool {
        self.layers.contains(&Layer::Storing)
    }

    fn layers_of(&mut self, piece: Piece) -> &mut [Layer] {
        &mut self.layers[piece.layer as usize..][..piece.layers as usize]
    }
}

#[derive(Debug)]
struct Lent {
    writer: String,
    /// Which of the receiver's layouts its pages have: of no meaning here.
    form: usize,
    pages: u32,
    landed: u32,
    places: Vec<Place>,
    /// Pages may land.
    open: bool,
    /// Why it ended, until that was told.
    end: Option<GrantEnd>,
    /// Connections whose pieces may still land.
    streams: u32,
    /// Writers that can store without the receiver's help.
    remote: u32,
    /// Where its pages land: decided by its first connection.
    memory: Option<Memory>,
}

impl Lent {
    fn place(&mut self, index: PageIndex) -> &mut Place {
        let window = self.places.len();
        &mut self.places[index.0 as usize % window]
    }

    /// Ends the grant, for the first reason given.
    fn end(&mut self, end: Option<GrantEnd>) {
        if self.open {
            (self.open, self.end) = (false, end);
        }
    }
}

#[derive(Debug)]
pub(super) struct Ledger {
    layers: u32,
    slots: u32,
    slots_per_grant: u32,
    free: Vec<u32>,
    lent: HashMap<Epoch, Lent>,
}

impl Ledger {
    /// `slots` free slots for pages of `layers` layers.
    pub fn new(layers: u32, slots: u32, slots_per_grant: u32) -> Self {
        Self { layers, slots, slots_per_grant, free: (0..slots).rev().collect(), lent: HashMap::new() }
    }

    /// Lends slots under `epoch`, which must be new; as many as the cap, the pages and the free ones allow.
    pub fn lend(
        &mut self,
        epoch: Epoch,
        pages: u32,
        writer: &str,
        form: usize,
    ) -> Result<Vec<u32>, GrantError> {
        if pages == 0 {
            return Err(GrantError::NoPages);
        }
        let window = pages.min(self.slots_per_grant) as usize;
        let slots = self.free.split_off(self.free.len().saturating_sub(window));
        if slots.is_empty() {
            return Err(GrantError::NoSlots);
        }
        let place = |(page, slot): (usize, &u32)| Place {
            slot: Some(*slot),
            page: page as u32,
            layers: vec![Layer::Missing; self.layers as usize],
            landed: false,
        };
        let places = slots.iter().enumerate().map(place).collect();
        let writer = writer.to_owned();
        let lent = Lent {
            writer,
            form,
            pages,
            landed: 0,
            places,
            open: true,
            end: None,
            streams: 0,
            remote: 0,
            memory: None,
        };
        self.lent.insert(epoch, lent);
        Ok(slots)
    }

    /// Counts a connection in; `remote` if its writer stores by itself. False if the grant is over, has enough, or has
    /// one into other memory.
    pub fn attach(&mut self, epoch: Epoch, remote: bool, memory: Memory) -> bool {
        let Some(lent) = self.lent.get_mut(&epoch) else { return false };
        if !lent.open || lent.streams == MAX_STREAMS || *lent.memory.get_or_insert(memory) != memory {
            return false;
        }
        lent.streams += 1;
        lent.remote += u32::from(remote);
        true
    }

    /// Asks where `piece` belongs.
    pub fn claim(&mut self, epoch: Epoch, piece: Piece) -> Claim {
        let layers = u64::from(self.layers);
        let Some(lent) = self.lent.get_mut(&epoch) else { return Claim::Over };
        if !lent.open {
            return Claim::Over;
        }
        let end = u64::from(piece.layer) + u64::from(piece.layers);
        if piece.index.0 >= lent.pages || piece.layers == 0 || end > layers {
            return Claim::Violation;
        }
        let place = lent.place(piece.index);
        if piece.index.0 > place.page {
            return Claim::Violation;
        }
        let Some(slot) = place.slot.filter(|_| piece.index.0 == place.page && !place.landed) else {
            return Claim::Skip;
        };
        let wanted = place.layers_of(piece);
        let missing = wanted.iter().filter(|layer| **layer == Layer::Missing).count();
        match missing {
            0 => Claim::Skip,
            _ if missing < wanted.len() => Claim::Violation,
            _ => {
                wanted.fill(Layer::Storing);
                Claim::Store(slot)
            }
        }
    }

    /// A claimed piece is in its slot. True if the page has landed with it.
    pub fn arrived(&mut self, epoch: Epoch, piece: Piece) -> bool {
        let Some(lent) = self.lent.get_mut(&epoch) else { return false };
        let open = lent.open;
        let place = lent.place(piece.index);
        place.layers_of(piece).fill(Layer::Arrived);
        place.landed = open && place.layers.iter().all(|layer| *layer == Layer::Arrived);
        let landed = place.landed;
        lent.landed += u32::from(landed);
        if !open {
            self.settle(epoch);
        }
        landed
    }

    /// A claimed piece will not come; a later one may take its place.
    pub fn abandoned(&mut self, epoch: Epoch, piece: Piece) {
        let Some(lent) = self.lent.get_mut(&epoch) else { return };
        lent.place(piece.index).layers_of(piece).fill(Layer::Missing);
        self.settle(epoch);
    }

    /// A landed page was taken. True if the grant's next page may now use the slot.
    pub fn taken(&mut self, epoch: Epoch, index: PageIndex) -> bool {
        let Some(lent) = self.lent.get_mut(&epoch) else { return false };
        let (pages, window, open) = (lent.pages, lent.places.len() as u32, lent.open);
        let place = lent.place(index);
        place.landed = false;
        place.layers.fill(Layer::Missing);
        let next = place.page.checked_add(window).filter(|page| open && *page < pages);
        match next {
            Some(page) => place.page = page,
            None => self.free.extend(place.slot.take()),
        }
        self.settle(epoch);
        next.is_some()
    }

    /// A connection will land nothing more; the grant ends with the last one, or with the first that fails. Returns
    /// how it ended, if that is now certain and was not told before.
    pub fn retired(&mut self, epoch: Epoch, end: GrantEnd) -> Option<GrantEnd> {
        let lent = self.lent.get_mut(&epoch)?;
        lent.streams -= 1;
        match end {
            GrantEnd::Finished | GrantEnd::Closed if lent.streams > 0 => {}
            GrantEnd::Finished | GrantEnd::Closed => {
                let whole = lent.landed == lent.pages;
                lent.end(Some(if whole { GrantEnd::Finished } else { GrantEnd::Closed }));
            }
            failed => lent.end(Some(failed)),
        }
        let told = if lent.streams == 0 { lent.end.take() } else { None };
        self.settle(epoch);
        told
    }

    /// A writer that stores by itself has stopped.
    pub fn detached(&mut self, epoch: Epoch) {
        let Some(lent) = self.lent.get_mut(&epoch) else { return };
        lent.remote = lent.remote.saturating_sub(1);
        self.settle(epoch);
    }

    /// Ends a grant on the receiver's own account; with `closed`, no writer stores any more.
    pub fn revoke(&mut self, epoch: Epoch, closed: bool) {
        let Some(lent) = self.lent.get_mut(&epoch) else { return };
        lent.end(None);
        if closed {
            lent.remote = 0;
        }
        self.settle(epoch);
    }

    /// The grants lent to `writer`, or to anybody.
    pub fn epochs(&self, writer: Option<&str>) -> Vec<Epoch> {
        let of = |lent: &Lent| writer.is_none_or(|writer| lent.writer == writer);
        self.lent.iter().filter(|(_, lent)| of(lent)).map(|(epoch, _)| *epoch).collect()
    }

    /// As it was lent.
    pub fn form(&self, epoch: Epoch) -> Option<usize> {
        self.lent.get(&epoch).map(|lent| lent.form)
    }

    pub fn is_open(&self, epoch: Epoch) -> bool {
        self.lent.get(&epoch).is_some_and(|lent| lent.open)
    }

    pub fn counts(&self) -> SlotCounts {
        let mut counts = SlotCounts { free: self.free.len() as u32, ..SlotCounts::default() };
        for lent in self.lent.values() {
            for place in lent.places.iter().filter(|place| place.slot.is_some()) {
                match (lent.open, place.landed) {
                    (true, _) => counts.granted += 1,
                    (false, true) => counts.held += 1,
                    (false, false) => counts.quarantined += 1,
                }
            }
        }
        debug_assert_eq!(counts.total(), self.slots);
        counts
    }

    /// Frees what a grant that is over no longer needs, and forgets it when that is everything.
    fn settle(&mut self, epoch: Epoch) {
        let Some(lent) = self.lent.get_mut(&epoch).filter(|lent| !lent.open) else { return };
        for place in &mut lent.places {
            // A landed page is not stored to again before it was taken.
            if lent.remote == 0 && !place.landed && !place.storing() {
                self.free.extend(place.slot.take());
            }
        }
        if lent.streams == 0 && lent.places.iter().all(|place| place.slot.is_none()) {
            self.lent.remove(&epoch);
        }
    }
}

#[cfg(test)]
mod tests;
