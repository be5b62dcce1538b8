use crate::settings::RouterSettings;

/// When computing a prompt at a prefill instance pays.
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bid {
    /// Tokens of the prompt that its cache lacks.
    pub missing: u32,
    /// Tokens that it computes before.
    pub queued: u32,
    /// Measured by the instance; 0 if it has not computed any.
    pub token_ns: u32,
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

    /// The place of the prefill instance that should compute the prompt, if any of `remotes` should. `spares`: the
    /// engine has other requests, which may be spared at the cost of this one.
    pub fn best(
        &self,
        local: &Bid,
        spares: bool,
        remotes: impl Iterator<Item = (usize, Bid)>,
    ) -> Option<usize> {
        if self.from_tokens == 0 || local.missing < self.from_tokens {
            return None;
        }
        let remotes: Vec<(usize, Bid)> = remotes.collect();
        // Where nothing was measured yet, machines are taken to be as fast as the slowest that was.
        let slowest = remotes.iter().map(|(_, bid)| bid.token_ns).fold(local.token_ns, u32::max);
        let guess = slowest.max(1);
        let takes = |bid: &Bid| {
            let token_ns = if bid.token_ns == 0 { guess } else { bid.token_ns };
            f64::from(bid.queued.saturating_add(bid.missing)) * f64::from(token_ns)
        };
        let sent = f64::from(local.missing) * self.token_ns + self.overhead_ms * 1e6;
        let (place, remote) = remotes
            .iter()
            .map(|(place, bid)| (*place, takes(bid) + sent))
            .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let patience = if spares { f64::from(self.patience_ms) * 1e6 } else { 0.0 };
        (remote <= takes(local) * self.slack + patience).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RemoteRule =
        RemoteRule { from_tokens: 256, slack: 1.2, patience_ms: 1000, overhead_ms: 5.0, token_ns: 5000.0 };

    fn bid(missing: u32, queued: u32) -> Bid {
        Bid { missing, queued, token_ns: 500_000 }
    }

    /// What is best for an engine that has no other request.
    fn best(local: Bid, remotes: &[Bid]) -> Option<usize> {
        RULE.best(&local, false, remotes.iter().copied().enumerate())
    }

    #[test]
    fn a_long_prompt_goes_to_an_idle_prefill_instance() {
        assert_eq!(best(bid(2000, 0), &[bid(2000, 900), bid(2000, 0)]), Some(1));
    }

    #[test]
    fn a_prompt_that_is_short_or_cached_here_stays() {
        assert_eq!(best(bid(255, 5000), &[bid(255, 0)]), None);
        let never = RemoteRule { from_tokens: 0, ..RULE };
        assert_eq!(never.best(&bid(9000, 0), true, [bid(1, 0)].into_iter().enumerate()), None);
    }

    #[test]
    fn a_prefill_queue_longer_than_computing_it_here_keeps_it_here() {
        assert_eq!(best(bid(1000, 0), &[bid(1000, 400)]), None);
        assert_eq!(best(bid(1000, 400), &[bid(1000, 400)]), Some(0));
    }

    #[test]
    fn an_engine_that_decodes_for_others_waits_longer_for_a_prefill_instance() {
        let queued = |tokens| [bid(1000, tokens)].into_iter().enumerate();
        assert_eq!(RULE.best(&bid(1000, 0), true, queued(2100)), Some(0));
        assert_eq!(RULE.best(&bid(1000, 0), true, queued(2300)), None, "that is a second too late");
    }

    #[test]
    fn a_prefix_cached_there_makes_up_for_a_queue() {
        assert_eq!(best(bid(1000, 0), &[bid(100, 800), bid(1000, 100)]), Some(0));
    }

    #[test]
    fn without_prefill_instances_nothing_is_remote() {
        assert_eq!(best(bid(9000, 9000), &[]), None);
    }

    #[test]
    fn an_instance_that_has_measured_nothing_is_no_miracle() {
        let fresh = Bid { token_ns: 0, ..bid(1000, 800) };
        assert_eq!(best(bid(1000, 0), &[fresh]), None);
    }
}
