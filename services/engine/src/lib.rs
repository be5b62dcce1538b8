//! An engine: a scheduler and an executor on one device thread, and the actor that owns it on the bus.
//!
//! Requests come in on the lanes ([`actor`]) and go through a bounded intake to the device thread ([`device`]),
//! which plans, computes and reports step by step. Reports become log entries ([`runs`]) and frames. The log of a
//! run outlives it by [`runs::KEEP_LOG`], so that a stream can be attached elsewhere without computing anything again.
//!
//! In its prefill role ([`prefill`]) an engine computes blocks of prompts for decode engines, which lend it slots to push
//! them into ([`remote`]); such blocks are cached blocks like others at both ends.

pub mod actor;
pub mod broadcast;
#[cfg(test)]
mod copied;
pub mod device;
mod executor;
pub mod feed;
pub mod handover;
pub mod offline;
pub mod prefill;
mod push;
pub mod remote;
pub mod runs;
pub mod service;
pub mod settings;
pub mod sim;
mod transport;

pub use executor::usable_gpus;
pub use service::run;
pub use settings::{EngineFlags, EngineSettings};
