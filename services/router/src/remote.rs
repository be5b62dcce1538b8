use crate::settings::RouterSettings;

/// When computing a prompt at a prefill instance pays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RemoteRule {
    /// Tokens missing at the engine from which on it is considered; 0: never.
    pub from_tokens: u32,
    /// How many times as long as at the engine it may take: an engine that decodes is worth sparing.
    pub slack: f64,
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
            overhead_ms: settings.remote_prefill_overhead_ms,
            token_ns: settings.remote_prefill_token_ns,
        }
    }

    /// The place of the prefill instance that should compute the prompt, if any of `remotes` should.
    pub fn best(&self, local: &Bid, remotes: impl Iterator<Item = (usize, Bid)>) -> Option<usize> {
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
        (remote <= takes(local) * self.slack).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RemoteRule = RemoteRule { from_tokens: 256, slack: 1.2, overhead_ms: 5.0, token_ns: 5000.0 };

    fn bid(missing: u32, queued: u32) -> Bid {
        Bid { missing, queued, token_ns: 500_000 }
    }

    #[test]
    fn a_long_prompt_goes_to_an_idle_prefill_instance() {
        assert_eq!(RULE.best(&bid(2000, 0), [bid(2000, 900), bid(2000, 0)].into_iter().enumerate()), Some(1));
    }

    #[test]
    fn a_prompt_that_is_short_or_cached_here_stays() {
        assert_eq!(RULE.best(&bid(255, 5000), [bid(255, 0)].into_iter().enumerate()), None);
        assert_eq!(
            RemoteRule { from_tokens: 0, ..RULE }.best(&bid(9000, 0), [bid(1, 0)].into_iter().enumerate()),
            None
        );
    }

    #[test]
    fn a_prefill_queue_longer_than_computing_it_here_keeps_it_here() {
        assert_eq!(RULE.best(&bid(1000, 0), [bid(1000, 400)].into_iter().enumerate()), None);
        assert_eq!(RULE.best(&bid(1000, 400), [bid(1000, 400)].into_iter().enumerate()), Some(0));
    }

    #[test]
    fn a_prefix_cached_there_makes_up_for_a_queue() {
        assert_eq!(
            RULE.best(&bid(1000, 0), [bid(100, 800), bid(1000, 100)].into_iter().enumerate()),
            Some(0)
        );
    }

    #[test]
    fn without_prefill_instances_nothing_is_remote() {
        assert_eq!(RULE.best(&bid(9000, 9000), std::iter::empty()), None);
    }

    #[test]
    fn an_instance_that_has_measured_nothing_is_no_miracle() {
        let fresh = Bid { token_ns: 0, ..bid(1000, 800) };
        assert_eq!(RULE.best(&bid(1000, 0), [fresh].into_iter().enumerate()), None);
    }
}
