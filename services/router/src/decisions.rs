//! Why a request went where it went: kept for a while, written to a file if wanted, and replayed.

mod ledger;
mod notes;
mod record;
mod replay;
mod shortlist;

use messages::{Attempt, InstanceId, Pool, RequestId};
use serde::{Deserialize, Serialize};

use crate::{
    policy::{Candidate, Demand, Policy, Terms, UNDRAWN, Weights},
    remote::Weighed,
};
pub use ledger::{Checked, KEPT, Ledger};
pub use notes::{Fate, Note, Notes};
pub use record::Recorder;
pub use replay::{Changes, Replayed, replay};
pub use shortlist::{Roster, Shortlist, Shown};

/// Which attempt something is told of, by whom and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub router: InstanceId,
    /// Unix milliseconds.
    pub at_ms: u64,
    pub request: RequestId,
    pub attempt: Attempt,
    /// The client's name for the request.
    pub label: Option<String>,
    pub tenant: Option<String>,
    pub pool: Pool,
}

impl About {
    /// Whether `name` is the client's label of the request, or `id` its bus id.
    fn is_named(&self, name: &str, id: Option<RequestId>) -> bool {
        self.label.as_deref() == Some(name) || Some(self.request) == id
    }
}

/// One dispatch of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Counts the dispatches of this router.
    pub number: u64,
    #[serde(flatten)]
    pub about: About,
    /// Time in this router until the decision, queueing included.
    pub held_us: u64,
    pub basis: Basis,
    pub policy: Policy,
    pub weights: Weights,
    pub demand: Demand,
    /// Best first.
    pub candidates: Vec<Considered>,
    /// Candidates not shown, all of higher cost.
    pub left_out: usize,
    pub chosen: InstanceId,
    /// Where the prompt is computed, if not there.
    pub prefill: Option<InstanceId>,
    /// What decided on that; nothing where no prefill instance lives, the engine takes nothing from others, engines may
    /// have died of the request, or the prompt is scored.
    #[serde(default)]
    pub remote_prefill: Option<Weighed>,
    pub outcome: Outcome,
    pub predicted_cached_tokens: u32,
    /// What the engine found, once it has told.
    pub cached_tokens: Option<u32>,
    /// The same of the prefill instance.
    #[serde(default)]
    pub prefill_cached_tokens: Option<u32>,
}

impl Decision {
    /// Tokens of the prompt that this prefill instance was predicted to have cached, if it is the one that was named.
    fn predicted_at(&self, prefill: &InstanceId) -> Option<u32> {
        let there = self.remote_prefill.as_ref()?.offer.there.as_ref()?;
        let missing = there.bid.missing_tokens;
        (self.prefill.as_ref() == Some(prefill)).then(|| self.demand.prompt_tokens.saturating_sub(missing))
    }

    /// Leaves all candidates out but the best ones and the chosen one.
    pub fn shorten(&mut self, to: usize) {
        let mut shown = 0;
        let before = self.candidates.len();
        self.candidates.retain(|candidate| {
            shown += 1;
            shown <= to || candidate.instance == self.chosen
        });
        self.left_out += before - self.candidates.len();
    }
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    Policy,
    Session,
    Pin,
}

impl Basis {
    pub const ALL: [Self; 3] = [Self::Policy, Self::Session, Self::Pin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Session => "session",
            Self::Pin => "pin",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// On its way.
    Offered,
    Accepted,
    /// Refused, or not answered in time.
    NotTaken,
}

/// One candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    pub instance: InstanceId,
    #[serde(flatten)]
    pub seen: Candidate,
    /// `None`: not drawn by `power-of-two`.
    #[serde(deserialize_with = "drawn")]
    pub cost: Option<f64>,
    /// What the cost is made of, where the `kv` policy decides.
    pub terms: Option<Terms>,
    /// It did not take this request before.
    pub tried: bool,
    /// It lately failed to answer, or the sender wants it avoided: only if nobody else can serve.
    pub doubted: bool,
}

/// Records used to name a cost that stood for none.
fn drawn<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.filter(|cost| *cost < UNDRAWN))
}

#[cfg(test)]
mod tests;
