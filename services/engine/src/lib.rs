//! An engine: a scheduler and an executor on one device thread, and the actor that owns it on the bus.
//!
//! Requests come in on the lanes ([`actor`]) and go through a bounded intake to the device thread ([`device`]),
//! which plans, computes and reports step by step. Reports become log entries ([`runs`]) and frames. The log of a
//! run outlives it by [`runs::KEEP_LOG`], so that a stream can be attached elsewhere without computing anything again.

pub mod actor;
pub mod device;
mod executor;
pub mod runs;
pub mod service;
pub mod settings;
pub mod sim;

pub use service::run;
pub use settings::{EngineFlags, EngineSettings};
