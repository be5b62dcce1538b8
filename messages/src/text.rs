//! Tokenize and detokenize: one request, one reply, served by the tokenizer.

use serde::{Deserialize, Serialize};

use crate::{fault::Fault, input::Input, tokens::TokenIds};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenize {
    pub input: Input,
    /// Add the tokens that the tokenizer puts around plain text (ignored for a chat: the template says).
    pub add_special_tokens: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    pub ids: TokenIds,
    /// The text of each token.
    pub pieces: Vec<String>,
    pub context_length: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detokenize {
    pub ids: TokenIds,
    pub skip_special_tokens: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detokenized {
    pub text: String,
}

/// The reply to either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Tokenized(Tokenized),
    Detokenized(Detokenized),
    Failed(Fault),
}
