use std::time::Duration;

use messages::block::ClusterKey;

/// How requests are chosen and steps are sized. Fields that mean what an SGLang argument means carry its name.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Choices that run at once; also bounded by the executor's slots and its tokens per step. `None`: those alone.
    pub max_running_requests: Option<u32>,
    /// Requests that wait for their first step.
    pub max_queued_requests: u32,
    /// Tokens of KV in use and cached, rounded down to pages. `None`: all that the executor has.
    pub max_total_tokens: Option<u32>,
    /// Prompt tokens of one sequence in one step.
    pub chunked_prefill_size: u32,
    /// Prompt tokens of all sequences in one step.
    pub max_prefill_tokens: u32,
    /// Tokens of a step in which prompts stand beside sequences that decode, these included. More, by halves of it, while
    /// prompts would get fewer than [`PROMPT_SHARE`] tokens for each sequence that is there, waiting or not, or if the step
    /// is expected to take no longer than [`QUICK_STEP`] all the same. `None`: the other bounds alone.
    pub mixed_step_tokens: Option<u32>,
    pub schedule_policy: SchedulePolicy,
    /// Keep the KV of ended sequences for later ones (`--disable-radix-cache` turns it off; the choices of one
    /// request share their prompt all the same).
    pub radix_cache: bool,
    /// A waiting request may push out a running one of lower priority when it does not fit beside it.
    pub priority_preemption: bool,
    /// Prefill chunks are sized so that a step is expected to stay within this time; zero turns that off.
    pub step_target: Duration,
    /// While sequences that decode are to be spared ([`crate::Scheduler::spare`]): how many times as long as without
    /// prompts a step is made by chunks of those that have put out nothing yet; zero turns that off.
    pub step_stretch: f64,
    /// Record what enters and leaves the prefix cache.
    pub kv_events: bool,
    /// Keys the identity of KV blocks.
    pub cluster_key: ClusterKey,
}

impl SchedulerConfig {
    /// Defaults for everything that is not a secret.
    pub fn new(cluster_key: ClusterKey) -> Self {
        Self {
            max_running_requests: None,
            max_queued_requests: 1024,
            max_total_tokens: None,
            chunked_prefill_size: 8192,
            max_prefill_tokens: 16384,
            mixed_step_tokens: None,
            schedule_policy: SchedulePolicy::Fcfs,
            radix_cache: true,
            priority_preemption: true,
            step_target: Duration::from_millis(250),
            step_stretch: 0.0,
            kv_events: false,
            cluster_key,
        }
    }
}

/// Prompt tokens that a mixed step has room for, for each sequence that decodes or waits. Where outputs are at least a
/// quarter as long as prompts, those that wait then enter as fast as others end.
pub const PROMPT_SHARE: u32 = 4;

/// A step that is not worth keeping shorter: small models would compute prompts in pieces that leave a device idle.
pub const QUICK_STEP: Duration = Duration::from_millis(10);

/// Which of the waiting requests of one priority goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulePolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Longest prefix match, looking at the first [`LPM_WINDOW`] that wait; who waited [`LPM_PATIENCE`] goes first.
    Lpm,
}

/// Waiting requests among which [`SchedulePolicy::Lpm`] chooses.
pub const LPM_WINDOW: usize = 128;

/// Bounds how long requests with a longer match may overtake one, under [`SchedulePolicy::Lpm`].
pub const LPM_PATIENCE: Duration = Duration::from_secs(5);

impl<'de> serde::Deserialize<'de> for SchedulePolicy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for SchedulePolicy {
    type Err = UnknownPolicy;

    /// Reads the values of `--schedule-policy`.
    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        match name {
            "fcfs" => Ok(Self::Fcfs),
            "lpm" => Ok(Self::Lpm),
            _ => Err(UnknownPolicy(name.to_owned())),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of fcfs, lpm")]
pub struct UnknownPolicy(String);
