use std::{io, sync::Arc};

use super::{
    DeviceMemory, Epoch, Grant, KvTransport, LandedPage, Listening,
    arena::{Form, SlotArena},
};
use crate::{Mismatch, PageLayout, Rearrangement};

#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    pub layout: PageLayout,
    /// Other layouts that pages may come in: they are rearranged as they land.
    pub others: Vec<PageLayout>,
    /// Pages that the staging region holds, each as large as one of the largest layout. It is taken from memory at once.
    pub slots: u32,
    /// Most slots that one grant gets.
    pub slots_per_grant: u32,
}

/// What becomes of a grant. Told on a transport's thread, which must not be held up.
#[derive(Debug)]
pub enum Event {
    /// All layers arrived as they were sent. Of one grant at most [`Grant::window`] are alive at once.
    Landed(LandedPage),
    /// No further page of this grant will land; what has landed stays good. Told once, and not of a grant that the
    /// receiver itself gave up.
    Ended { epoch: Epoch, end: GrantEnd },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantEnd {
    /// Every page landed and the writer closed.
    Finished,
    /// The writer closed before every page had landed.
    Closed,
    /// The connection to the writer broke or fell silent.
    Gone,
    /// A checksum did not match.
    Corrupt,
    /// The writer broke the protocol.
    Violation,
}

/// Slots by what they are used for; together all slots of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCounts {
    pub free: u32,
    /// Lent to a grant that lives.
    pub granted: u32,
    /// Of a grant that is over, but a [`LandedPage`] in it is still held.
    pub held: u32,
    /// Of a grant that is over, but its writer might still store there.
    pub quarantined: u32,
}

impl SlotCounts {
    pub fn total(&self) -> u32 {
        self.free + self.granted + self.held + self.quarantined
    }
}

/// The end that lends slots. Dropping it revokes every grant and stops listening.
pub struct Receiver {
    arena: Arc<SlotArena>,
    listening: Vec<Box<dyn Listening>>,
}

impl Receiver {
    /// Maps the slots and listens on `transports`, whose order is that of the addresses in grants. One that cannot listen is
    /// left aside, with a warning, unless it is the last.
    ///
    /// # Errors
    /// If memory or the last transport's address cannot be had, the layout is empty, or another has nothing to do with it.
    pub fn start(
        config: ReceiverConfig,
        transports: &[Box<dyn KvTransport>],
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let ReceiverConfig { layout, others, slots, slots_per_grant } = config;
        if layout.page_bytes() == 0 {
            return Err(StartError::EmptyLayout(layout));
        }
        let mut forms = vec![Form { layout, rearrangement: None }];
        for theirs in others {
            let ours = &forms[0].layout;
            let Some(rearrangement) = Rearrangement::new(&theirs, ours) else {
                return Err(Mismatch { ours: Box::new(ours.clone()), theirs: Box::new(theirs) }.into());
            };
            forms.push(Form { layout: theirs, rearrangement: Some(rearrangement) });
        }
        let arena = Arc::new(SlotArena::new(forms, slots, slots_per_grant, Box::new(on_event))?);
        Ok(Self { listening: listen(transports, &arena)?, arena })
    }

    /// Has slots in `memory` as well, if they are in no device's yet: pages that land on the host are copied there, on the
    /// transport's thread, before they are told of. Call it before the first grant.
    ///
    /// # Errors
    /// If there is not so much left.
    pub fn keep_in(&self, memory: &dyn DeviceMemory) -> io::Result<()> {
        if self.arena.device().is_none() {
            self.arena.keep_in(memory.allocate(self.arena.device_bytes())?);
        }
        Ok(())
    }

    /// Lends slots for `pages` pages to `writer`, a name that [`Receiver::writer_gone`] knows it by.
    ///
    /// # Errors
    /// If no slot is free, or `pages` is 0.
    pub fn grant(&self, pages: u32, writer: &str) -> Result<Grant, GrantError> {
        self.lend(pages, writer, 0)
    }

    /// The same for pages of any layout that may come, by its name in full.
    ///
    /// # Errors
    /// As of `grant`, and if pages of this layout are not taken.
    pub fn grant_of(&self, layout: &str, pages: u32, writer: &str) -> Result<Grant, GrantError> {
        let form = self.arena.forms().iter().position(|form| form.layout.to_string() == layout);
        self.lend(pages, writer, form.ok_or(GrantError::Layout)?)
    }

    fn lend(&self, pages: u32, writer: &str, form: usize) -> Result<Grant, GrantError> {
        let (epoch, slots) = self.arena.lend(pages, writer, form)?;
        let Form { layout, rearrangement } = &self.arena.forms()[form];
        let listening = self.listening.iter();
        // What lands in device memory stays as it is.
        let listening = listening.filter(|at| rearrangement.is_none() || !at.in_device_memory());
        let addresses = listening.map(|listening| listening.address()).collect();
        let (layout, slot_bytes) = (layout.clone(), self.arena.slot_bytes());
        Ok(Grant { epoch, pages, slots, layout, slot_bytes, addresses })
    }

    /// Takes the slots of a grant back. Pages that have landed and are held stay readable. Slots that the writer might
    /// still store to are quarantined. Unknown epochs are ignored, as below.
    pub fn revoke(&self, epoch: Epoch) {
        self.arena.revoke(epoch, false);
    }

    /// The writer said, by whatever way, that it will store nothing more under `epoch`: revokes and ends quarantine.
    pub fn closed(&self, epoch: Epoch) {
        self.arena.revoke(epoch, true);
    }

    /// The process of `writer` has ended, beyond doubt (a lease that expired is none): revokes all its grants. Where it was
    /// connected quarantine ends with the connection, for what its device was told to store may still be on its way.
    pub fn writer_gone(&self, writer: &str) {
        for epoch in self.arena.epochs(writer) {
            self.arena.revoke(epoch, false);
        }
    }

    pub fn counts(&self) -> SlotCounts {
        self.arena.counts()
    }
}

/// Each transport reaches as far as those before it, so it can stand in for them.
fn listen(
    transports: &[Box<dyn KvTransport>],
    arena: &Arc<SlotArena>,
) -> Result<Vec<Box<dyn Listening>>, StartError> {
    let mut listening = Vec::new();
    for (number, transport) in transports.iter().enumerate() {
        let scheme = transport.scheme();
        match transport.listen(arena.clone()) {
            Ok(open) => listening.push(open),
            Err(error) if number + 1 < transports.len() => {
                tracing::warn!(scheme, %error, "kv pages cannot come this way, which is left aside");
            }
            Err(error) => return Err(StartError::Listen { scheme, error }),
        }
    }
    Ok(listening)
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.listening.clear();
        self.arena.shut();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("no transfer slot is free")]
    NoSlots,
    #[error("a grant of no pages")]
    NoPages,
    #[error("pages of this layout are not taken")]
    Layout,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("a page has no bytes: {0}")]
    EmptyLayout(PageLayout),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("transfer slots: {0}")]
    Io(#[from] io::Error),
    #[error("no kv pages can come by {scheme}: {error}")]
    Listen { scheme: &'static str, error: io::Error },
}
