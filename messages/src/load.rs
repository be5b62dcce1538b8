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
}
