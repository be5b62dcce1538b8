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

impl SamplingParams {
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-6 || self.top_k == 1
    }
}
