//! Chooses the engine of each request and hands it over. Holds what no engine can take yet; never touches a frame.

mod actor;
mod choose;
mod held;
mod loads;
mod service;
mod settings;

pub use service::run;
pub use settings::{Policy, RouterFlags, RouterSettings};
