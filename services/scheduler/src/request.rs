use std::sync::Arc;

use messages::block::BlockHash;
use models::{SamplingError, SamplingParams, TokenId};

use crate::Micros;

/// The caller's name for a request on this engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey(pub u64);

/// What is wanted of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Goal {
    /// Its continuation.
    #[default]
    Output,
    /// The same, but blocks of the prompt are on their way: it waits for [`crate::Scheduler::go_on`], which every such
    /// run must get, or a cancel, sooner or later.
    OutputOnceLanded,
    /// Its blocks, of which the prompt has whole ones only, `from` and on of them for somebody else
    /// ([`models::Batch::exports`]). Nothing is sampled or scored: of the choices the first counts, without its output.
    /// The blocks stay held until the run is cancelled.
    Blocks { from: u32 },
}

/// A prompt to be continued in one or several choices.
#[derive(Debug, Clone)]
pub struct Request {
    pub run: RunKey,
    pub goal: Goal,
    /// Not empty.
    pub prompt: Arc<[TokenId]>,
    /// The choices to go on with, each index once. Not empty.
    pub choices: Vec<Choice>,
    pub params: SamplingParams,
    /// Output tokens of each choice, those given in `choices` included. 0 computes and scores the prompt only.
    pub max_tokens: u32,
    /// Higher goes first.
    pub priority: i32,
    /// The run ends when this has passed.
    pub deadline: Option<Micros>,
    /// Where the prompt's chain of block hashes starts ([`messages::block::ClusterKey::root`]): sequences share KV
    /// only under equal roots.
    pub root: BlockHash,
    /// Report log probabilities of the prompt's tokens from this index on, with as many alternatives as
    /// [`SamplingParams::logprobs`] asks for. The first token of a prompt has none.
    pub score_prompt_from: Option<u32>,
    /// When the request came in; orders requests of one priority. A repair may keep its first arrival.
    pub arrived: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Part of the random counter and of every event.
    pub index: u32,
    /// Tokens already put out elsewhere; sampling goes on at the position after them.
    pub output: Vec<TokenId>,
}

/// A request was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Requests that wait for their first step, this one included.
    pub queued: u32,
    /// Tokens of prompts that are to be computed before this request's first token, itself included and cache hits
    /// to come not deducted.
    pub pending_prefill_tokens: u64,
    /// Leading blocks of the prompt that the run holds already; none unless it waits for others to land.
    pub held_blocks: u32,
    /// Leading blocks that may land.
    pub wanted_blocks: u32,
}

/// A request was not taken in. Only [`Refusal::QueueFull`] may turn out otherwise later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{queued} requests are queued and the limit is {limit}")]
    QueueFull { queued: u32, limit: u32 },
    #[error("the request needs {needed_tokens} tokens of kv cache and the engine has {capacity_tokens}")]
    NeverFits { needed_tokens: u64, capacity_tokens: u64 },
    /// Prompt and output so far leave no room for another token.
    #[error("the request has {tokens} tokens and the context holds {context}")]
    TooLong { tokens: u64, context: u32 },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the request has no choices")]
    NoChoices,
    #[error("choice {0} is given twice")]
    DuplicateChoice(u32),
    /// Blocks are wanted of an engine that keeps none, or not whole ones.
    #[error("{tokens} tokens are not blocks of {page_size} of a prefix cache")]
    NoBlocks { tokens: u32, page_size: u32 },
    #[error("run {} is here already", .0.0)]
    DuplicateRun(RunKey),
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken { token: TokenId, vocab_size: u32 },
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}
