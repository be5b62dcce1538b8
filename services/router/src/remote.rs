//! Whether a prefill instance should compute a prompt, and what was weighed for that.

use messages::InstanceId;
use serde::{Deserialize, Serialize};

use crate::settings::RouterSettings;

/// When computing a prompt at a prefill instance pays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RemoteRule {
    /// Tokens missing at the engine from which on it is considered; 0: never.
    pub from_tokens: u32,
    /// How many times as long as at the engine it may take.
    pub slack: f64,
    /// What it may take beyond that if the engine decodes for others, who are worth sparing.
    pub patience_ms: u32,
    pub overhead_ms: f64,
    /// Sending the KV of a token.
    pub token_ns: f64,
}

/// What computing a prompt takes at one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bid {
    /// Tokens of the prompt that its cache lacks.
    pub missing_tokens: u32,
    /// Tokens that it computes before.
    pub queued_tokens: u32,
    /// As measured by the instance. Who has computed nothing says 0, and is weighed as the slowest that has.
    pub token_ns: u32,
}

/// What there is to choose from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The engine's own.
    pub here: Bid,
    /// The engine has other requests, which may be spared at the cost of this one.
    pub spares: bool,
    /// Of the prefill instances that can be asked, the one that would be done first.
    pub there: Option<There>,
    #[serde(flatten)]
    pub passed_over: PassedOver,
}

/// Prefill instances that cannot be asked, by why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PassedOver {
    /// Their layout of KV pages is another than the engine's.
    pub other_layout: u32,
    /// Their KV pools do not hold the prompt.
    pub too_small: u32,
    /// They lately failed to answer, or the sender wants them avoided.
    pub doubted: u32,
    /// By the engine, because blocks of theirs did not get through.
    pub shunned: u32,
}

/// The bid of a prefill instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct There {
    pub instance: InstanceId,
    #[serde(flatten)]
    pub bid: Bid,
}

/// Whether a prefill instance is named, or why none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Named,
    /// None ever is: the rule begins at 0 tokens.
    Off,
    /// The engine lacks too few tokens.
    TooFewTokens,
    /// All are passed over, see [`PassedOver`]; of several reasons the one that passes soonest.
    OtherLayout,
    TooSmall,
    Doubted,
    Shunned,
    TooSlow,
}

/// What was weighed, and by which rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    pub verdict: Verdict,
    #[serde(flatten)]
    pub times: Times,
    #[serde(flatten)]
    pub offer: Offer,
    pub rule: RemoteRule,
}

/// What the offer takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub here_ms: f64,
    /// Queue, computing and transfer.
    pub there_ms: Option<f64>,
    pub transfer_ms: f64,
    /// What it may take there: slack and patience included.
    pub there_at_most_ms: f64,
}

impl Bid {
    fn takes_ms(&self) -> f64 {
        let tokens = self.queued_tokens.saturating_add(self.missing_tokens);
        f64::from(tokens) * f64::from(self.token_ns) / 1e6
    }

    fn or_as_slow_as(self, token_ns: u32) -> Self {
        if self.token_ns == 0 { Self { token_ns, ..self } } else { self }
    }
}

/// The place of the bid that would be done first, and both as they are weighed: where nothing was measured yet,
/// machines are taken to be as fast as the slowest that was.
pub fn soonest(here: Bid, there: &[(usize, Bid)]) -> (Bid, Option<(usize, Bid)>) {
    let slowest = there.iter().map(|(_, bid)| bid.token_ns).fold(here.token_ns, u32::max).max(1);
    let there = there.iter().map(|&(place, bid)| (place, bid.or_as_slow_as(slowest)));
    let soonest = there.min_by(|(_, a), (_, b)| a.takes_ms().total_cmp(&b.takes_ms()));
    (here.or_as_slow_as(slowest), soonest)
}

impl PassedOver {
    fn verdict(&self) -> Verdict {
        match self {
            Self { shunned: 1.., .. } => Verdict::Shunned,
            Self { doubted: 1.., .. } => Verdict::Doubted,
            Self { too_small: 1.., .. } => Verdict::TooSmall,
            _ => Verdict::OtherLayout,
        }
    }
}

impl RemoteRule {
    pub fn of(settings: &RouterSettings) -> Self {
        Self {
            from_tokens: settings.remote_prefill_tokens,
            slack: settings.remote_prefill_slack,
            patience_ms: settings.remote_prefill_patience_ms,
            overhead_ms: settings.remote_prefill_overhead_ms,
            token_ns: settings.remote_prefill_token_ns,
        }
    }

    pub fn weigh(&self, offer: Offer) -> Weighed {
        let times = self.times(&offer);
        Weighed { verdict: self.judge(&offer, &times), times, offer, rule: *self }
    }

    fn times(&self, offer: &Offer) -> Times {
        let here_ms = offer.here.takes_ms();
        let transfer_ms = f64::from(offer.here.missing_tokens) * self.token_ns / 1e6 + self.overhead_ms;
        let there_ms = offer.there.as_ref().map(|there| there.bid.takes_ms() + transfer_ms);
        let patience_ms = if offer.spares { f64::from(self.patience_ms) } else { 0.0 };
        Times { here_ms, there_ms, transfer_ms, there_at_most_ms: here_ms * self.slack + patience_ms }
    }

    fn judge(&self, offer: &Offer, times: &Times) -> Verdict {
        match times.there_ms {
            _ if self.from_tokens == 0 => Verdict::Off,
            _ if offer.here.missing_tokens < self.from_tokens => Verdict::TooFewTokens,
            None => offer.passed_over.verdict(),
            Some(there_ms) if there_ms <= times.there_at_most_ms => Verdict::Named,
            Some(_) => Verdict::TooSlow,
        }
    }
}

impl Weighed {
    /// The prefill instance that should compute the prompt.
    pub fn named(&self) -> Option<&InstanceId> {
        let there = self.offer.there.as_ref().filter(|_| self.verdict == Verdict::Named);
        there.map(|there| &there.instance)
    }
}

#[cfg(test)]
mod tests;
