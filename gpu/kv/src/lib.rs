//! KV memory: which page belongs to whom, and how pages travel from one engine to another.
//!
//! - [`PagePool`] counts references to pages. No device memory lives there; a page is a number that an executor and
//!   a scheduler agree on.
//! - [`transfer`] moves whole pages. Decode owns a [`transfer::Receiver`] and lends slots of it with
//!   [`transfer::Receiver::grant`]; the [`transfer::Grant`] goes to prefill, which opens it with
//!   [`transfer::Transports::open`] and pushes layers through a [`transfer::PageWriter`]. A page whose layers have all
//!   arrived comes back to decode as [`transfer::Event::Landed`].
//! - [`PageLayout`] says what the bytes of a page mean. A writer pushes pages of its own layout; where the receiver's is
//!   another [`Arrangement`] of the same keys and values, pages are rearranged as they land ([`Rearrangement`]).

mod arrangement;
mod layout;
mod pool;
mod rearrange;
pub mod transfer;

pub use arrangement::{Arrangement, GROUP, KvDtype, Order, turning_places};
pub use layout::{Mismatch, PageLayout};
pub use pool::{PageId, PagePool};
pub use rearrange::Rearrangement;
