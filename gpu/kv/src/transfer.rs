//! Pages from one engine to another.
//!
//! The receiver (decode) owns a staging region of slots, one page each; no writer ever reaches its page pool. It
//! lends some slots under a [`Grant`]: a number of pages, an [`Epoch`] that is never used again, and addresses. The
//! writer (prefill) opens the first address it can and pushes layers of pages, each with a checksum. A page has
//! landed when all its layers have; the receiver hears of it as [`Event::Landed`], copies it where it belongs and
//! drops the [`LandedPage`], which hands the slot to the next page of the same grant. So a grant may have more pages
//! than slots, and the writer waits when the receiver is slow.
//!
//! Page `i` of a grant with a window of `w` slots uses slot `i mod w`: at most `w` consecutive pages are under way.
//! Who pushes layer by layer must complete pages `0..w` before it starts on page `w`.
//!
//! A grant is for pages of one layout, the receiver's own or another that it takes. Pages of another are rearranged when
//! they have landed, on the transport's thread, and are of the receiver's layout from then on.
//!
//! A receiver may revoke a grant at any time. A slot to which somebody might still store (shared memory, the writer
//! has not closed) stays quarantined until the writer closes or its process is gone.
//!
//! With a transport that has device memory ([`IpcTransport`]), or where the receiver was given some
//! ([`Receiver::keep_in`]), every slot is there twice, in host and in device memory. A grant uses those of its first
//! connection. Pages that land in device memory never touch the host; those that land on the host are copied to device memory
//! before the receiver hears of them, so that whoever owns the pool finds all pages in one place.

mod arena;
mod bodies;
mod checksum;
mod connection;
mod device;
mod grant;
mod handshake;
mod ipc;
mod key;
mod ledger;
mod listener;
mod local;
mod pusher;
mod receiver;
mod region;
mod shm;
mod socket;
mod tcp;
mod transport;
mod turn;
mod wire;
mod writer;

pub use arena::{LandedPage, SlotArena};
pub use device::{DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, HostRoom, Span, device_checksum};
pub use grant::{Address, Epoch, Grant, PageIndex};
pub use ipc::IpcTransport;
pub use key::TransferKey;
pub use receiver::{Event, GrantEnd, GrantError, Receiver, ReceiverConfig, SlotCounts, StartError};
pub use shm::ShmTransport;
pub use tcp::TcpTransport;
pub use transport::{KvTransport, LinkConfig, Listening, Transports};
pub use writer::{DeviceWriter, OpenError, PageWriter, Place, WriteError};

#[cfg(test)]
mod tests;
