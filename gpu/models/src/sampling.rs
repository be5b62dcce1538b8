use serde::{Deserialize, Serialize};

use crate::TokenId;

/// How one choice draws its tokens from f32 logits. Applied in this order: bias, `min_tokens` mask of `stop_ids`,
/// repetition penalty, presence and frequency penalty, temperature, top-k, top-p, min-p, one Philox draw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Below 1e-6 the most likely token is taken, ties to the lowest id.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches `top_p`.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one.
    pub min_p: f32,
    /// Subtracted from the logit of every token already in the output.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it is in the output.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 does nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// `stop_ids` cannot be drawn before this many output tokens.
    pub min_tokens: u32,
    /// Tokens that end the choice (end-of-sequence ids included unless ignored).
    pub stop_ids: Vec<TokenId>,
    /// Key of the random stream; the counter is (choice, output position).
    pub seed: u64,
    pub logprobs: Logprobs,
}

/// Which log probabilities are reported. They are those of the model's raw distribution: after no penalty, bias or
/// temperature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Logprobs {
    #[default]
    Off,
    /// That of the sampled token and of this many most likely ones.
    Top(u8),
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            stop_ids: Vec::new(),
            seed: 0,
            logprobs: Logprobs::Off,
        }
    }
}

/// How much of a request's lists an executor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingBounds {
    pub logit_bias: usize,
    /// Of [`SamplingParams::masked_stops`].
    pub masked_stops: usize,
    pub top_logprobs: usize,
}

impl SamplingBounds {
    pub const NONE: Self =
        Self { logit_bias: usize::MAX, masked_stops: usize::MAX, top_logprobs: usize::MAX };
}

/// Why a request cannot be sampled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wrong}")]
pub struct SamplingError {
    pub field: &'static str,
    wrong: String,
}

impl SamplingParams {
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-6 || self.top_k == 1
    }

    /// Stop ids that cannot be drawn at first.
    pub fn masked_stops(&self) -> &[TokenId] {
        if self.min_tokens > 0 { &self.stop_ids } else { &[] }
    }

    /// # Errors
    /// The first parameter that is no number, means nothing or exceeds a bound.
    pub fn check(&self, bounds: &SamplingBounds) -> Result<(), SamplingError> {
        let wrong = |field, wrong: String| Err(SamplingError { field, wrong });
        let numbers = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("repetition_penalty", self.repetition_penalty),
        ];
        if let Some((field, number)) = numbers.into_iter().find(|(_, number)| !number.is_finite()) {
            return wrong(field, format!("{number} is no finite number"));
        }
        if self.repetition_penalty <= 0.0 {
            return wrong("repetition_penalty", format!("{} is not above 0", self.repetition_penalty));
        }
        if let Some((token, _)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan()) {
            return wrong("logit_bias", format!("that of token {token} is not a number"));
        }
        let top = match self.logprobs {
            Logprobs::Off => 0,
            Logprobs::Top(count) => count.into(),
        };
        for (field, count, most) in [
            ("logit_bias", self.logit_bias.len(), bounds.logit_bias),
            ("stop_token_ids", self.masked_stops().len(), bounds.masked_stops),
            ("top_logprobs", top, bounds.top_logprobs),
        ] {
            if count > most {
                return wrong(field, format!("{count} are more than the {most} that the engine takes"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: SamplingBounds = SamplingBounds { logit_bias: 2, masked_stops: 3, top_logprobs: 4 };

    fn wrong(params: SamplingParams) -> String {
        params.check(&BOUNDS).unwrap_err().to_string()
    }

    #[test]
    fn what_exceeds_a_bound_is_told_with_both_numbers() {
        let most = SamplingParams {
            logit_bias: vec![(1, 1.0); 2],
            min_tokens: 1,
            stop_ids: vec![5; 3],
            logprobs: Logprobs::Top(4),
            ..SamplingParams::default()
        };
        assert_eq!(most.check(&BOUNDS), Ok(()));
        assert_eq!(
            wrong(SamplingParams { logit_bias: vec![(1, 1.0); 5], ..most.clone() }),
            "logit_bias: 5 are more than the 2 that the engine takes"
        );
        assert_eq!(
            wrong(SamplingParams { stop_ids: vec![5; 9], ..most.clone() }),
            "stop_token_ids: 9 are more than the 3 that the engine takes"
        );
        assert_eq!(
            wrong(SamplingParams { logprobs: Logprobs::Top(7), ..most }),
            "top_logprobs: 7 are more than the 4 that the engine takes"
        );
    }

    #[test]
    fn stop_ids_count_only_where_they_are_masked() {
        let params = SamplingParams { stop_ids: vec![5; 9], ..SamplingParams::default() };
        assert_eq!(params.check(&BOUNDS), Ok(()));
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        let params = SamplingParams::default();
        assert_eq!(
            wrong(SamplingParams { top_p: f32::NAN, ..params.clone() }),
            "top_p: NaN is no finite number"
        );
        assert_eq!(
            wrong(SamplingParams { repetition_penalty: -1.0, ..params.clone() }),
            "repetition_penalty: -1 is not above 0"
        );
        assert_eq!(
            wrong(SamplingParams { logit_bias: vec![(7, f32::NAN)], ..params }),
            "logit_bias: that of token 7 is not a number"
        );
    }
}
