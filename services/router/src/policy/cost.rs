use serde::{Deserialize, Serialize};

use super::{Candidate, Demand};

/// How much each term of the `kv` policy weighs, all in blocks of prompt to compute.
///
/// After Dynamo's default selector: prefill work less the credit for what is cached, plus decode blocks, plus active
/// requests. The credit fades on engines that have more prefill waiting than the least burdened one, and active
/// requests weigh by default, so that a prefix that everybody shares does not draw everybody to one engine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Worth of a cached block.
    pub overlap: f64,
    /// How fast that worth fades with prefill work that waits beyond the least of all engines.
    pub overlap_decay: f64,
    /// Cost of a block to compute, those that wait included.
    pub prefill: f64,
    /// Cost of a block that running requests hold.
    pub decode: f64,
    /// Cost of a request running, queued or on its way.
    pub request: f64,
    /// 0 takes the lowest cost; more spreads over low costs.
    pub temperature: f64,
}

/// What a candidate's cost is made of.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Terms {
    pub prefill: f64,
    pub decode: f64,
    pub requests: f64,
}

impl Terms {
    pub fn total(self) -> f64 {
        self.prefill + self.decode + self.requests
    }
}

/// What is the same for all candidates of one request: this is computed a thousand times a decision.
#[derive(Debug, Clone, Copy)]
struct Measure {
    blocks_per_token: f64,
    /// Blocks of the prompt.
    request: f64,
    least: u32,
}

impl Weights {
    pub(super) fn price(
        &self,
        demand: &Demand,
        candidates: impl Iterator<Item = Candidate> + Clone,
        costs: &mut Vec<f64>,
    ) {
        let measure = Measure::new(demand, least_prefill(candidates.clone()));
        costs.extend(candidates.map(|candidate| self.measured(&measure, &candidate).total()));
    }

    /// `least`: prompt tokens that the least burdened candidate has yet to compute.
    pub fn terms(&self, demand: &Demand, candidate: &Candidate, least: u32) -> Terms {
        self.measured(&Measure::new(demand, least), candidate)
    }

    #[inline]
    fn measured(&self, measure: &Measure, candidate: &Candidate) -> Terms {
        let Measure { blocks_per_token, request, least } = *measure;
        let backlog = f64::from(candidate.prefill_tokens) * blocks_per_token;
        let credit = if candidate.overlap_blocks == 0 {
            0.0
        } else {
            let beyond = f64::from(candidate.prefill_tokens.saturating_sub(least)) * blocks_per_token;
            let faded = 1.0 / (1.0 + self.overlap_decay * beyond / request.max(1.0));
            self.overlap * faded * f64::from(candidate.overlap_blocks)
        };
        Terms {
            prefill: self.prefill * (backlog + request - credit).max(0.0),
            decode: self.decode * (f64::from(candidate.used_blocks) + request),
            requests: self.request * f64::from(candidate.requests),
        }
    }
}

impl Measure {
    fn new(demand: &Demand, least: u32) -> Self {
        let blocks_per_token = 1.0 / f64::from(demand.page_size.max(1));
        Self { blocks_per_token, request: f64::from(demand.prompt_tokens) * blocks_per_token, least }
    }
}

pub fn least_prefill(candidates: impl Iterator<Item = Candidate>) -> u32 {
    candidates.map(|candidate| candidate.prefill_tokens).min().unwrap_or(0)
}
