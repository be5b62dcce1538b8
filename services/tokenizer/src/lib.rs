//! The tokenizer service: text to tokens on the way in, tokens to text on the way out.
//!
//! [`template`] renders conversations, [`encode`] makes token ids of text, [`decode`] makes text of token ids as they
//! come, with stop strings.

mod bytes;
pub mod decode;
pub mod encode;
#[cfg(test)]
mod samples;
pub mod template;
