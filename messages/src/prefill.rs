//! Decode to prefill and back: blocks of a prompt, computed elsewhere.
//!
//! Decode keeps the request and lends out one task: compute the full blocks of this prompt that I lack and push them
//! to me. What is handed over are cached blocks under their names, nothing else: once they have landed the request
//! is admitted like one whose prefix was cached all along, and decode computes the tokens after the last full block
//! itself. So nothing is sampled by prefill, `n` choices need one prefill, and a hand-over that breaks off leaves
//! decode with whatever has landed.

use serde::{Deserialize, Serialize};

use crate::{
    fault::Fault,
    id::{InstanceId, RunId},
    pages::Pages,
    tokens::TokenIds,
};

/// On the prefill instance's request subject. Answered by [`PrefillAnswer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrefillTask {
    /// The run at decode: names the task in all that follows.
    pub run: RunId,
    /// Whole blocks of tokens, at least one.
    pub prompt: TokenIds,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// Leading blocks that decode holds already.
    pub held_blocks: u32,
    #[serde(default)]
    pub priority: i32,
    /// Who lends slots and waits.
    pub decode: InstanceId,
    /// The dispatch of the run: prefill's loads confirm it as decode's do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<(InstanceId, u64)>,
    /// How decode lays out a page, in the words of `kv::PageLayout`, and its numerics class: a prefill that differs refuses
    /// with both sides' values, unless decode accepts what it has.
    pub layout: String,
    #[serde(default)]
    pub numerics_class: String,
    /// Layouts of pages that decode takes whoever computed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<String>,
}

impl PrefillTask {
    /// What pages of decode are.
    pub fn pages(&self) -> Pages<'_> {
        Pages { layout: &self.layout, numerics_class: Some(&self.numerics_class) }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefillAnswer {
    Accepted {
        /// Milliseconds until the last block is expected to be computed, work queued before it included.
        estimate_ms: u32,
    },
    Refused(Fault),
}

/// From prefill to decode's control subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefillNews {
    /// These tasks are alive: said of all of them four times a second, and after a step of those that it got on with.
    Pulse {
        tasks: Vec<TaskPulse>,
    },
    /// Computing begins: lend me slots for these blocks. Answered by [`SlotAnswer`].
    WantSlots {
        run: RunId,
        blocks: u32,
        /// Leading blocks of the prompt that prefill's cache held: they were computed for others.
        #[serde(default)]
        cached_blocks: u32,
        /// How prefill lays out a page; if it does not say, as decode does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layout: Option<String>,
    },
    Failed {
        run: RunId,
        fault: Fault,
    },
    /// No store into the slots of this epoch will come any more.
    Closed {
        epoch: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPulse {
    pub run: RunId,
    /// Until its last block is computed; 0 if it is.
    pub remaining_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotAnswer {
    /// A `kv` grant in its own encoding.
    Granted(bytes::Bytes),
    Refused(Fault),
}
