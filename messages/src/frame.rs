//! Replies on their way back: one message per engine step and inbox, never one per token.
//!
//! Frames of a choice are ordered by `at`, the output position of their first token: a gap shows loss, an overlap
//! is a repetition to be cut. A run has at most one terminal frame ([`Body::Closed`] or [`Body::Failed`]).

use serde::{Deserialize, Serialize};

use crate::{
    fault::Fault,
    id::{Attempt, InstanceId, RequestId, Role, RunId},
    tokens::TokenIds,
};

/// From an engine to a tokenizer.
pub type TokenBatch = Batch<TokenDelta>;
/// From a tokenizer to an ingress; routers and engines send theirs (acceptances, heartbeats) in the same form.
pub type TextBatch = Batch<TextDelta>;

/// All that one sender has for one inbox now. With no frames it is a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch<D> {
    pub from: InstanceId,
    pub role: Role,
    /// Counts the batches from this sender to this inbox, from 1: a gap shows that some were lost.
    pub number: u64,
    /// Unix microseconds at the end of the step that sampled these tokens; 0 if none did.
    #[serde(default)]
    pub sampled_us: u64,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frame<D>>,
    /// Runs that are alive here and had no frame since the last batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alive: Vec<Alive>,
    /// Engines: what the device is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulse: Option<Pulse>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frame<D> {
    pub request: RequestId,
    pub attempt: Attempt,
    /// Absent while no engine has been chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    pub body: Body<D>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body<D> {
    /// This instance holds the request now.
    Accepted {
        instance: InstanceId,
        role: Role,
        /// From a router, of an engine: who was named to compute the prompt for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefill: Option<InstanceId>,
    },
    /// From a router: this engine was offered the request and did not answer. It may have it, or have died of it.
    Unanswered {
        engine: InstanceId,
        /// The same may be true of who was named to compute the prompt for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefill: Option<InstanceId>,
    },
    /// The tokenizer's verdict: the prompt in tokens.
    Rendered {
        prompt: TokenIds,
    },
    /// The engine began: tokens of the prompt that its cache held, and time spent queued.
    Started {
        cached_tokens: u32,
        queued_us: u64,
    },
    /// Log probabilities of the prompt's tokens from index `first` on, in order. The very first token of a prompt has
    /// none and is left out.
    Prompt {
        first: u32,
        tokens: Vec<TokenLogprobs>,
    },
    Delta(D),
    /// Every choice has ended.
    Closed {
        usage: Usage,
    },
    Failed(Fault),
}

/// New tokens of one choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenDelta {
    pub choice: u32,
    /// Output position of the first of `ids` (or of the end, if there are none).
    pub at: u32,
    #[serde(default, skip_serializing_if = "TokenIds::is_empty")]
    pub ids: TokenIds,
    /// One per id, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// New text of one choice, and the tokens it came from (for the journal).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextDelta {
    pub choice: u32,
    pub at: u32,
    #[serde(default, skip_serializing_if = "TokenIds::is_empty")]
    pub ids: TokenIds,
    /// Bytes of this choice's text before `text`.
    pub offset: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// One per token that the text ends with or before; cut where a stop string cut the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TextLogprobs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// Why a choice ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A stop token, the last of the output ids.
    StopToken(u32),
    /// A stop string; output tokens up to the one that completed it.
    StopString {
        matched: String,
        tokens: u32,
    },
    Length,
    Cancelled,
}

/// Log probability of a token and of the most likely ones at its place, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    pub id: u32,
    pub logprob: Option<f32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(u32, f32)>,
}

/// The same with the text of each token, as raw bytes since a token may be part of a character.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextLogprobs {
    pub id: u32,
    #[serde(with = "serde_bytes")]
    pub token: Vec<u8>,
    pub logprob: Option<f32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopLogprob>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    pub id: u32,
    #[serde(with = "serde_bytes")]
    pub token: Vec<u8>,
    pub logprob: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    /// Output tokens over all choices that this run sampled or was given.
    pub output_tokens: u32,
}

/// A run's sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alive {
    pub request: RequestId,
    pub attempt: Attempt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Output position that each choice has reached at the sender.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<(u32, u32)>,
    /// Tokenizers: milliseconds since the engine was last heard of.
    #[serde(default)]
    pub quiet_ms: u32,
    /// Tokenizers: a router has taken the request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed_on: bool,
}

/// What an engine's device is at, as those who asked it for that stamped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pulse {
    /// The last step that began.
    pub step: u64,
    /// How long it has been at what it has been at for longest, the running step or pages that are moved; 0 when idle.
    pub age_ms: u32,
    /// How long that may take by the engine's own announcement.
    pub bound_ms: u32,
}
