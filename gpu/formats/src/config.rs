//! What a decoder is made of, read from `config.json` or from GGUF metadata into one form.

mod decoder;
mod fields;
mod gguf;
mod huggingface;
mod quantisation;
mod rope;

pub use decoder::DecoderSpec;
pub(crate) use fields::Fields;
pub use rope::{RopeScaling, RopeSpec};

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;

/// The decoder families that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Architecture {
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// As in `model_type` of config.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// A decoder's configuration with every default filled in and every number checked against [`limits`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub architecture: Architecture,
    pub decoder: DecoderSpec,
    pub bos: Option<u32>,
    /// Ids that end a sequence.
    pub eos: Vec<u32>,
}

/// Largest values taken from a file, so that no product of two overflows and no small file asks for a huge model.
pub mod limits {
    pub const VOCAB_SIZE: u32 = 1 << 22;
    pub const WIDTH: u32 = 1 << 20;
    pub const LAYERS: u32 = 1 << 12;
    pub const HEADS: u32 = 1 << 12;
    pub const HEAD_DIM: u32 = 1 << 12;
    pub const CONTEXT_LENGTH: u32 = 1 << 28;
}

impl DecoderConfig {
    /// Checks the numbers against the limits and each other. `name` gives the file's own name of a field.
    fn check(&self, name: impl Fn(&'static str) -> String) -> Result<(), ErrorKind> {
        let decoder = &self.decoder;
        let ranges = [
            ("vocab_size", decoder.vocab_size, limits::VOCAB_SIZE),
            ("hidden_size", decoder.hidden_size, limits::WIDTH),
            ("num_hidden_layers", decoder.layers, limits::LAYERS),
            ("num_attention_heads", decoder.heads, limits::HEADS),
            ("num_key_value_heads", decoder.kv_heads, limits::HEADS),
            ("head_dim", decoder.head_dim, limits::HEAD_DIM),
            ("intermediate_size", decoder.intermediate_size, limits::WIDTH),
            ("max_position_embeddings", decoder.context_length, limits::CONTEXT_LENGTH),
            ("sliding_window", decoder.sliding_window.unwrap_or(1), u32::MAX),
        ];
        for (field, value, limit) in ranges {
            if value == 0 || value > limit {
                return Err(ErrorKind::malformed(name(field), format!("{value} is not within 1 to {limit}")));
            }
        }
        if !decoder.heads.is_multiple_of(decoder.kv_heads) {
            let reason =
                format!("{} key-value heads do not divide {} heads", decoder.kv_heads, decoder.heads);
            return Err(ErrorKind::malformed(name("num_key_value_heads"), reason));
        }
        if !decoder.head_dim.is_multiple_of(2) {
            return Err(ErrorKind::malformed(name("head_dim"), format!("{} is odd", decoder.head_dim)));
        }
        if !(decoder.norm_eps.is_finite() && decoder.norm_eps > 0.0) {
            return Err(ErrorKind::malformed(
                name("rms_norm_eps"),
                format!("{} is not above 0", decoder.norm_eps),
            ));
        }
        if let Some(id) = self.bos.iter().chain(&self.eos).find(|id| **id >= decoder.vocab_size) {
            let reason = format!("{id} is not in the vocabulary of {}", decoder.vocab_size);
            return Err(ErrorKind::malformed(name("eos_token_id"), reason));
        }
        decoder.rope.check(decoder.head_dim)
    }
}

#[cfg(test)]
mod tests;
