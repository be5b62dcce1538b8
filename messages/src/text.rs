//! Tokenize and detokenize: one request, one reply, served by the tokenizer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{fault::Fault, generate::Input, tokens::TokenIds};

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

/// JSON text inside a MessagePack body: chat messages reach the template exactly as the client wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(pub Bytes);

impl Json {
    /// Encodes a JSON value.
    pub fn of<T: Serialize>(value: &T) -> Self {
        Self(serde_json::to_vec(value).expect("plain data becomes json").into())
    }

    /// # Errors
    /// If the text is not JSON of that type.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }
}
