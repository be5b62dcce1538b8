use crate::{SamplingParams, TokenId};

use super::History;

/// Changes made to a row of logits, with what was there before.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// In the order of the changes; a token may occur several times.
    undo: Vec<(TokenId, f32)>,
}

impl Edits {
    pub fn with_capacity(edits: usize) -> Self {
        Self { undo: Vec::with_capacity(edits) }
    }

    /// Bias, `min_tokens` mask, repetition penalty, presence and frequency penalty, in this order.
    pub fn apply(&mut self, logits: &mut [f32], params: &SamplingParams, history: &History) {
        self.undo.clear();
        for &(token, bias) in &params.logit_bias {
            self.change(logits, token, |logit| logit + bias);
        }
        if history.output_len() < params.min_tokens {
            for &token in &params.stop_ids {
                self.change(logits, token, |_| f32::NEG_INFINITY);
            }
        }
        let repetition = params.repetition_penalty;
        for seen in history.seen() {
            self.change(logits, seen.token, |logit| {
                let logit = match repetition {
                    1.0 => logit,
                    _ if logit > 0.0 => logit / repetition,
                    _ => logit * repetition,
                };
                match seen.count {
                    0 => logit,
                    n => logit - (params.presence_penalty + params.frequency_penalty * n as f32),
                }
            });
        }
    }

    /// The model's own logit of `token`, before [`Self::apply`].
    pub fn raw(&self, logits: &[f32], token: TokenId) -> f32 {
        self.undo
            .iter()
            .find(|(changed, _)| *changed == token)
            .map_or_else(|| logits[token as usize], |&(_, logit)| logit)
    }

    fn change(&mut self, logits: &mut [f32], token: TokenId, edit: impl FnOnce(f32) -> f32) {
        if let Some(logit) = logits.get_mut(token as usize) {
            self.undo.push((token, *logit));
            *logit = edit(*logit);
        }
    }
}
