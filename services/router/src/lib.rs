//! Chooses the engine of each request and hands it over. Holds what no engine can take yet; never touches a frame.
//!
//! [`actor`] is the router on the bus. What it knows of one model is a [`deployment`]: fleets of engines ([`fleet`]),
//! each with an [`index`] of all their caches, kept by a [`follow`]er for each, and their [`load`]; a [`queue`] of those
//! that wait; and a [`policy`] that prices candidates. [`decisions`] tell why. All but the actor is pure.

mod actor;
pub mod chain;
pub mod decisions;
pub mod deployment;
mod deployments;
pub mod fleet;
pub mod follow;
mod held;
pub mod index;
pub mod load;
pub mod policy;
pub mod queue;
pub mod remote;
mod service;
mod settings;

#[cfg(test)]
mod fixtures;

pub use decisions::{Changes, Replayed, replay};
pub use policy::Policy;
pub use service::run;
pub use settings::{KvEventsMode, RouterFlags, RouterSettings};
