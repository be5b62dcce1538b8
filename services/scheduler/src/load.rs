use std::time::Duration;

/// A scheduler's state in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Choices that hold a slot.
    pub running: u32,
    /// Choices that may run at once.
    pub max_running: u32,
    /// Requests that wait for their first step.
    pub queued: u32,
    pub max_queued: u32,
    /// Choices that wait for a slot, those of started requests (preempted, or not yet forked) included.
    pub waiting_choices: u32,
    /// Blocks that running choices hold.
    pub blocks_used: u32,
    /// Blocks that only the prefix cache holds; evicted when needed.
    pub blocks_cached: u32,
    pub blocks_total: u32,
    /// Tokens of waiting and running choices that are known and not yet in a step.
    pub pending_prefill_tokens: u64,
    /// Exponential mean over recent steps.
    pub step_time: Duration,
    /// Marginal cost of a prompt token in recent steps.
    pub prefill_token_time: Duration,
    /// Choices pushed out of the batch since the start.
    pub preemptions: u64,
}
