//! Chooses the engine of each request and hands it over. Holds what no engine can take yet; never touches a frame.
//!
//! [`actor`] is the router on the bus. What it knows of one model is a [`deployment`]: fleets of engines ([`fleet`]),
//! each with an [`index`] of all their caches, kept by a [`follow`]er for each, and their [`load`]; a [`queue`] of those
//! that wait; and a [`policy`] that prices candidates. [`decisions`] tell why.

mod actor;
mod chain;
mod decisions;
mod deployment;
mod fleet;
mod follow;
mod held;
pub mod index;
mod load;
pub mod policy;
mod queue;
mod remote;
mod service;
mod settings;

#[cfg(test)]
mod fixtures;

pub use decisions::{Replayed, replay};
pub use policy::Policy;
pub use service::run;
pub use settings::{KvEventsMode, RouterFlags, RouterSettings};
