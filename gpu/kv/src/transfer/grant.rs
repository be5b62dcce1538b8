use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PageLayout;

/// Names a grant. Drawn at random, so that no two grants of any receiver, before or after a restart, share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A page's place in its grant, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageIndex(pub u32);

/// Leave to push pages to a receiver. It travels from receiver to writer in any serde format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub epoch: Epoch,
    /// Pages `0..pages` may be pushed.
    pub pages: u32,
    /// The slots lent: page `i` uses the one at `i mod window`, once page `i - window` has landed and was taken.
    pub slots: Vec<u32>,
    /// How the pages are laid out.
    pub layout: PageLayout,
    /// Bytes from one of the receiver's slots to the next; in device memory those of a page.
    pub slot_bytes: u64,
    /// Where the receiver listens, best first.
    pub addresses: Vec<Address>,
}

impl Grant {
    /// Pages that may be under way at once.
    pub fn window(&self) -> u32 {
        self.slots.len() as u32
    }
}

/// `scheme:rest`, as `shm:/run/stator/kv.sock` or `tcp://10.0.0.7:4300`. Schemes that a writer does not know are
/// skipped, so a receiver may offer newer ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(pub String);

impl Address {
    /// What comes before the first colon, and what comes after; the scheme is empty if there is no colon.
    pub fn split(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or(("", &self.0))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
