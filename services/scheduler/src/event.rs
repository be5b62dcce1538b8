use std::time::Duration;

use messages::block::BlockHash;
pub use messages::frame::Usage;
use models::{TokenId, TokenLogprob};

use crate::RunKey;

/// What happened to a run. In order: [`Event::Started`] once if it was ever scheduled, then tokens and scores, one
/// [`Event::Ended`] per choice, and [`Event::RunClosed`] last, once.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first choice of the run enters its first step.
    Started {
        run: RunKey,
        /// Tokens of the prompt whose KV was found in the cache.
        cached_tokens: u32,
        queue_time: Duration,
    },
    /// Log probabilities of the prompt's tokens `first..first + tokens.len()`, each with the most likely tokens in
    /// its place. Comes in pieces, in order, without gaps.
    PromptScored {
        run: RunKey,
        first: u32,
        tokens: Vec<(f32, Vec<TokenLogprob>)>,
    },
    /// These leading blocks of a prompt whose blocks are wanted are computed; once it is all of them, only the run's
    /// hold on them remains.
    BlocksComputed {
        run: RunKey,
        blocks: u32,
    },
    /// A token was put out. Each choice's positions go up by one from the length of the output it was given. A stop
    /// token is a token like any other, counted in the usage; `Ended` follows it at once.
    Token {
        run: RunKey,
        choice: u32,
        /// Index in the choice's output.
        position: u32,
        token: TokenId,
        logprob: Option<f32>,
        top: Vec<TokenLogprob>,
    },
    Ended {
        run: RunKey,
        choice: u32,
        reason: EndReason,
    },
    /// Every choice has ended; nothing of the run is held any more.
    RunClosed {
        run: RunKey,
        usage: Usage,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// This stop token was put out; it is the last of the output.
    Stop(TokenId),
    /// `max_tokens` or the context's length was reached.
    Length,
    Cancelled,
    DeadlineExceeded,
    /// The executor refused a step that the choice was part of.
    Failed,
    /// The logits of one of the run's choices were no finite numbers.
    NotFinite,
}

/// A change of the prefix cache, for routers that send requests to where their prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvEvent {
    /// `block` may be matched by sequences that match `parent`, which is another block or a root.
    Stored { parent: BlockHash, block: BlockHash },
    /// Children are always removed before their parents.
    Removed { block: BlockHash },
    /// No block is left.
    Cleared,
}
