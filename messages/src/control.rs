//! Control: short messages that never wait behind work.

use serde::{Deserialize, Serialize};

use crate::{
    frame::Pulse,
    id::{Attempt, InstanceId, RequestId, RunId},
    lease::State,
    prefill::PrefillNews,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    Cancel(Cancel),
    Attach(Attach),
    /// Are you alive, and do you hold this run? Answered by [`Pong`].
    Ping {
        request: Option<RequestId>,
        run: Option<RunId>,
    },
    /// What does your prefix cache hold? Answered by [`crate::kv::KvSnapshot`].
    KvSnapshot {},
    /// About a prompt that is computed elsewhere.
    Prefill(PrefillNews),
    /// Go away: finish or hand over within the grace, at once if `now`. Answered by [`Drained`] when that is done.
    Drain {
        now: bool,
    },
}

/// Nothing is left to be done here. The process ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Nobody misses the process if it is killed now.
    pub safe_to_stop: bool,
}

/// Ends work for a request. Unknown ids leave a tombstone that later work meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    pub request: RequestId,
    /// This attempt and all before it.
    pub attempt: Attempt,
    /// Only this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Only this choice of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<u32>,
}

/// Send this run's frames to `inbox` from now on, beginning at these positions. Answered by [`Attached`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    pub request: RequestId,
    pub run: RunId,
    pub inbox: InstanceId,
    /// (choice, output position) of the next token wanted; choices not named are wanted from their start.
    pub from: Vec<(u32, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// False if the instance knows no such run.
    pub known: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    pub instance: InstanceId,
    pub state: State,
    pub pulse: Pulse,
    /// The run that the ping named is held here, or its log still is.
    pub knows_run: bool,
}
