//! Ingress to tokenizer: a request as the client meant it, or its journal when it must go on elsewhere.

use serde::{Deserialize, Serialize};

use crate::{
    id::{InstanceId, RunId},
    input::Input,
    submit::{Routing, Sampling},
    text::{Detokenize, Tokenize},
    tokens::TokenIds,
};

/// What the tokenizer's request subject carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToTokenizer {
    Generate(Box<Generate>),
    Tokenize(Tokenize),
    Detokenize(Detokenize),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    pub input: Input,
    /// Choices to produce, numbered from 0.
    pub n: u32,
    pub sampling: Sampling,
    /// Output tokens per choice; `None`: as many as there is room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    pub text: TextOptions,
    /// Report log probabilities of the prompt's tokens from this index on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_prompt_from: Option<u32>,
    #[serde(default)]
    pub priority: i32,
    /// Separates prefix caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    #[serde(default)]
    pub routing: Routing,
    /// Where frames go.
    pub ingress: InstanceId,
    /// Set when an earlier attempt got somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// The run is alive and only its tokenizer was lost: take over its frames, submit nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<RunAt>,
    /// Instances to be avoided while others can serve: suspects of the sender.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<InstanceId>,
    /// See [`crate::submit::Submit::deaths`].
    #[serde(default)]
    pub deaths: u32,
}

/// How tokens become text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextOptions {
    /// Strings that end a choice.
    pub stop: Vec<String>,
    /// Keep the matched stop string in the text.
    pub include_stop: bool,
    pub skip_special_tokens: bool,
    /// Add the tokens that the tokenizer puts around plain text (`Input::Text` only).
    pub add_special_tokens: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { stop: Vec::new(), include_stop: false, skip_special_tokens: true, add_special_tokens: true }
    }
}

/// What is needed to go on elsewhere, beside the request itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The prompt as first rendered.
    pub prompt: TokenIds,
    /// One per choice that has not ended.
    pub choices: Vec<ChoiceJournal>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceJournal {
    pub index: u32,
    /// Output tokens that ingress has, in order.
    pub output: TokenIds,
    /// Bytes of text that ingress has; only what follows them is sent.
    pub delivered: u64,
}

/// A run and the engine that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAt {
    pub engine: InstanceId,
    pub run: RunId,
}
