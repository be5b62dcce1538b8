use std::{io, sync::Arc, time::Duration};

use super::{Address, Grant, OpenError, PageWriter, SlotArena, TransferKey};
use crate::PageLayout;

/// What every transport needs to know of its peers.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    pub key: TransferKey,
    /// A peer that has not proved itself by then is cut off.
    pub handshake: Duration,
    /// How long a writer waits for a free slot, or for the network to take its bytes.
    pub stall: Duration,
    /// A receiver takes a network writer that says nothing for this long for gone.
    pub idle: Duration,
    /// How long a device may go on storing for a process that has ended.
    pub teardown: Duration,
}

impl LinkConfig {
    pub fn new(key: TransferKey) -> Self {
        let [handshake, stall, idle, teardown] = [2, 10, 60, 2].map(Duration::from_secs);
        Self { key, handshake, stall, idle, teardown }
    }
}

/// A way for pages to travel, both ends of it.
pub trait KvTransport: Send + Sync {
    /// What addresses of this transport start with.
    fn scheme(&self) -> &'static str;

    /// Accepts writers for the grants of `arena`.
    ///
    /// # Errors
    /// If it cannot listen where it was told to.
    fn listen(&self, arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>>;

    /// Opens `grant` at one of its addresses, which is of this scheme.
    ///
    /// # Errors
    /// [`OpenError::Unreachable`] if another address may do better; other errors hold for all addresses.
    fn open(&self, grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError>;

    /// Lets go of what is kept from one grant to the next of the receiver at an address, which is of this scheme.
    fn forget(&self, _: &Address) {}
}

/// Accepts writers until it is dropped.
pub trait Listening: Send + Sync {
    fn address(&self) -> Address;

    /// Whether what arrives there is in device memory.
    fn in_device_memory(&self) -> bool {
        false
    }
}

/// The transports of a process, best first; each reaches as far as those before it.
pub struct Transports(pub Vec<Box<dyn KvTransport>>);

impl Transports {
    /// Opens `grant` at the first of its addresses that can be reached, to push pages laid out as `layout`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, grant: &Grant, layout: &PageLayout) -> Result<Box<dyn PageWriter>, OpenError> {
        layout.check(&grant.layout)?;
        let mut failed = Vec::new();
        for address in &grant.addresses {
            let Some(transport) = self.0.iter().find(|transport| transport.scheme() == address.split().0)
            else {
                continue;
            };
            match transport.open(grant, address) {
                Err(OpenError::Unreachable(why)) => failed.push(why),
                opened => return opened,
            }
        }
        if failed.is_empty() {
            let theirs: Vec<_> = grant.addresses.iter().map(|address| address.split().0).collect();
            let ours: Vec<_> = self.0.iter().map(|transport| transport.scheme()).collect();
            failed.push(format!(
                "it receives by {}, this engine sends by {}",
                theirs.join(", "),
                ours.join(", ")
            ));
        }
        Err(OpenError::Unreachable(failed.join("; ")))
    }

    /// Lets go of memory of the receiver at these addresses: it is gone, and would not give its memory back otherwise. If
    /// it comes back, its next grant is opened as its first was.
    pub fn forget(&self, addresses: &[Address]) {
        for address in addresses {
            let known = self.0.iter().filter(|transport| transport.scheme() == address.split().0);
            known.for_each(|transport| transport.forget(address));
        }
    }
}
