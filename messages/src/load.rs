//! What engines broadcast about their load: absolute state, so that a lost report heals with the next.

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub instance: InstanceId,
    /// Counts the reports of this instance.
    pub number: u64,
    pub running: u32,
    pub queued: u32,
    pub max_running: u32,
    pub max_queued: u32,
    pub blocks_used: u32,
    /// Held only by the prefix cache, free to be evicted.
    pub blocks_cached: u32,
    pub blocks_total: u32,
    /// Prompt tokens admitted and not yet computed.
    pub pending_prefill_tokens: u32,
    /// Exponential means, microseconds.
    pub step_us: u32,
    pub prefill_token_ns: u32,
    /// Per router, the highest dispatch number that this report includes.
    #[serde(default)]
    pub seen: Vec<(InstanceId, u64)>,
    /// Epoch and number of the next [`crate::kv::KvEvents`]: shows that the last ones were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<(u64, u64)>,
    /// A request is aboard that engines have died under, and that has not got far here yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maybe_poison: bool,
    /// Prefill instances of which it asks nothing for a while, because their blocks did not get through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shunned: Vec<InstanceId>,
    /// Runs that began since the last report, at most [`STARTED_PER_REPORT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started: Vec<Started>,
}

impl Load {
    /// A first report: nothing to do, no room, nothing measured.
    pub fn new(instance: InstanceId) -> Self {
        Self {
            instance,
            number: 1,
            running: 0,
            queued: 0,
            max_running: 0,
            max_queued: 0,
            blocks_used: 0,
            blocks_cached: 0,
            blocks_total: 0,
            pending_prefill_tokens: 0,
            step_us: 0,
            prefill_token_ns: 0,
            seen: Vec::new(),
            kv: None,
            maybe_poison: false,
            shunned: Vec::new(),
            started: Vec::new(),
        }
    }
}

/// Beginnings that one report tells of; the rest are not told.
pub const STARTED_PER_REPORT: usize = 256;

/// What a prefix cache was worth to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The dispatch: router and number.
    pub router: InstanceId,
    pub number: u64,
    /// Tokens of the prompt that the cache held when the run began.
    pub cached_tokens: u32,
}
