use std::io;

use super::{DeviceAddress, PageIndex};
use crate::Mismatch;

/// Pushes the pages of one grant. Dropping it closes: the receiver knows that no store will follow.
///
/// Calls block, up to [`super::LinkConfig::stall`]; who must not wait gives it a thread.
pub trait PageWriter: Send {
    /// Pages that may be under way at once. A page beyond waits until the one `window` before it was taken.
    fn window(&self) -> u32;

    /// Pushes the layers of page `index` from `layer` on, as many as `bytes` holds. Pushing whole pages is cheapest. A
    /// layer that was pushed before is left out.
    ///
    /// # Errors
    /// After any error but [`WriteError::OutOfTurn`] the grant is lost: drop the writer.
    ///
    /// # Panics
    /// If `bytes` is not a whole number of layers or they are not of this grant.
    fn write(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError>;

    /// Where this process' device may store by itself, if the receiver's slots are in device memory.
    fn device(&mut self) -> Option<&mut dyn DeviceWriter> {
        None
    }

    /// Pushes what is left and closes, once the receiver has confirmed that all pages written have landed.
    ///
    /// # Errors
    /// As of `write`. The writer is closed in any case.
    fn finish(self: Box<Self>) -> Result<(), WriteError>;
}

/// Pushes pages that a device stores.
pub trait DeviceWriter {
    /// Where page `index` belongs, once its slot is for it; None if it was taken already.
    ///
    /// # Errors
    /// As of [`PageWriter::write`].
    fn place(&mut self, index: PageIndex) -> Result<Option<Place>, WriteError>;

    /// These pages are in their places, whole, with these checksums.
    ///
    /// # Errors
    /// As of [`PageWriter::write`].
    fn stored(&mut self, pages: &[(PageIndex, u64)]) -> Result<(), WriteError>;
}

/// The slot of a page in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub address: DeviceAddress,
    /// Of the page's [`super::device_checksum`].
    pub seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// No address of the grant could be opened.
    #[error("no address of the grant can be reached: {0}")]
    Unreachable(String),
    /// The receiver no longer knows the grant.
    #[error("the grant was revoked")]
    Revoked,
    /// One end does not have the cluster's key.
    #[error("the peer does not have the cluster's key")]
    NotTrusted,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the grant was revoked")]
    Revoked,
    #[error("the receiver is gone: {0}")]
    Gone(#[source] io::Error),
    /// A page arrived otherwise than it was sent.
    #[error("a page arrived corrupt")]
    Corrupt,
    /// The receiver took longer than [`super::LinkConfig::stall`] to free a slot or to read.
    #[error("the receiver took no page for {0:?}")]
    Stalled(std::time::Duration),
    /// The slot of this page holds an earlier page that is not complete. Nothing was pushed.
    #[error("page {} is out of turn: page {} is not complete", .page.0, .before.0)]
    OutOfTurn { page: PageIndex, before: PageIndex },
}
