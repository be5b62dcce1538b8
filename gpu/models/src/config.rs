//! From a model's configuration file to a [`DecoderSpec`].

use formats::DecoderConfig;

use crate::{DecoderSpec, RopeScaling, RopeSpec};

impl From<&DecoderConfig> for DecoderSpec {
    fn from(config: &DecoderConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            intermediate_size: config.intermediate_size,
            norm_eps: config.norm_eps,
            rope: RopeSpec {
                theta: config.rope.theta,
                dim: config.rope.dim,
                scaling: RopeScaling::from(&config.rope.scaling),
            },
            context_length: config.context_length,
            qkv_bias: config.qkv_bias,
            qk_norm: config.qk_norm,
            tied_embeddings: config.tied_embeddings,
            sliding_window: config.sliding_window,
        }
    }
}

impl From<&formats::RopeScaling> for RopeScaling {
    fn from(scaling: &formats::RopeScaling) -> Self {
        use formats::RopeScaling as From;
        match *scaling {
            From::None => Self::None,
            From::Linear { factor } => Self::Linear { factor },
            From::Dynamic { factor, original_context } => Self::Dynamic { factor, original_context },
            From::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
            }
            From::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate } => {
                Self::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate }
            }
            From::Factors(ref factors) => Self::Factors { factors: factors.clone() },
        }
    }
}
