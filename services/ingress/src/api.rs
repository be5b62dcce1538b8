//! What clients send and how it is checked: pure functions from JSON to requests and errors.

pub mod ask;
pub mod chat;
pub mod completion;
pub mod error;
pub mod fields;
pub mod model;
pub mod native;
pub mod openapi;
pub mod sampling;
pub mod seeds;
pub mod tokenize;

#[cfg(test)]
pub mod fixtures;

pub use ask::{Ask, Form};
pub use error::ApiError;
pub use fields::Fields;
pub use seeds::Seeds;
