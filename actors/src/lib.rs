//! How an actor lives on the bus.
//!
//! A process ([`process`]) has one identity, a lease ([`lease`]), a view of who else is alive ([`directory`]), two
//! connections ([`bus`]), lanes on which requests and control messages arrive ([`lane`]), and an outbox of reply
//! frames ([`frames`]). Work passes from hop to hop by custody ([`custody`]); cancels that overtake their request
//! wait as [`tombstones`]. The lifecycle (starting, ready, draining) belongs to the [`root`] actor; [`life`] is its handle.

// The paths that `settings!` writes must resolve in this crate too.
extern crate self as actors;

pub mod admin;
pub mod bus;
pub mod custody;
pub mod directory;
pub mod frames;
pub mod lane;
pub mod lease;
pub mod life;
pub mod process;
pub mod root;
pub mod settings;
pub mod suspects;
pub mod telemetry;
pub mod tombstones;

pub use process::{Context, Me};
