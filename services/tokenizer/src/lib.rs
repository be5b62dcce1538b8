//! The tokenizer service: text to tokens on the way in, tokens to text on the way out.
//!
//! [`template`] renders conversations, [`encode`] makes token ids of text, [`decode`] makes text of token ids as they
//! come and finds stop strings; [`model`] is all three for one model. [`requests`] is the state of what is under way,
//! without I/O; [`actor`] lives on the bus with it.

mod actor;
mod bytes;
pub mod decode;
pub mod encode;
pub mod model;
pub mod requests;
#[cfg(test)]
mod samples;
mod service;
mod settings;
pub mod template;
mod workers;

pub use service::run;
pub use settings::{TokenizerFlags, TokenizerSettings};
