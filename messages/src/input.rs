//! What a client gives to be completed or encoded.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::tokens::TokenIds;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    Chat(Chat),
    Text(String),
    Tokens(TokenIds),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// A JSON array of OpenAI messages.
    pub messages: Json,
    /// A JSON array, if the request has the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Json>,
    /// A JSON object of further template variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_kwargs: Option<Json>,
    pub add_generation_prompt: bool,
    /// Go on with the last message instead of answering it.
    pub continue_final_message: bool,
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
