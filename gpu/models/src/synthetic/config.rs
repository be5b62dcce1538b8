use formats::{Architecture, DType, fp8::SCALE_BLOCK};
use serde_json::{Value, json};

use super::tokenizer;
use crate::{DecoderSpec, ModelError, RopeScaling};

/// A config.json that reads back as `spec`.
pub(super) fn config_json(spec: &DecoderSpec, dtype: DType) -> Result<Value, ModelError> {
    let refuse = |reason: &str| Err(ModelError::Synthetic(reason.into()));
    let quantised = dtype == DType::F8E4M3;
    let dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 | DType::F8E4M3 => "bfloat16",
        _ => return refuse("random weights are written as F32, F16, BF16 or F8E4M3 only"),
    };
    let architecture = match (spec.qkv_bias, spec.qk_norm, spec.sliding_window) {
        (false, false, None) => Architecture::Llama,
        (false, false, Some(_)) => Architecture::Mistral,
        (true, false, _) => Architecture::Qwen2,
        (false, true, _) => Architecture::Qwen3,
        (true, true, _) => return refuse("no architecture has both query biases and query norms"),
    };
    let class = match architecture {
        Architecture::Llama => "LlamaForCausalLM",
        Architecture::Mistral => "MistralForCausalLM",
        Architecture::Qwen2 => "Qwen2ForCausalLM",
        Architecture::Qwen3 => "Qwen3ForCausalLM",
    };
    let has_tokenizer = spec.vocab_size >= tokenizer::VOCAB_SIZE;
    let mut config = json!({
        "architectures": [class],
        "model_type": architecture.name(),
        "dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": exact(spec.norm_eps),
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": spec.tied_embeddings,
        "sliding_window": spec.sliding_window,
        "use_sliding_window": spec.sliding_window.is_some(),
        "max_window_layers": 0,
        "bos_token_id": null,
        "eos_token_id": has_tokenizer.then_some(tokenizer::END_OF_TURN),
        "rope_parameters": rope_parameters(spec)?,
    });
    if quantised {
        config["quantization_config"] = json!({
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [SCALE_BLOCK, SCALE_BLOCK],
        });
    }
    Ok(config)
}

fn rope_parameters(spec: &DecoderSpec) -> Result<Value, ModelError> {
    let mut parameters = match spec.rope.scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": exact(factor) }),
        RopeScaling::Dynamic { factor, original_context } if original_context == spec.context_length => {
            json!({ "rope_type": "dynamic", "factor": exact(factor) })
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3",
            "factor": exact(factor),
            "low_freq_factor": exact(low_freq_factor),
            "high_freq_factor": exact(high_freq_factor),
            "original_max_position_embeddings": original_context,
        }),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate } => {
            json!({
                "rope_type": "yarn",
                "factor": exact(factor),
                "original_max_position_embeddings": original_context,
                "beta_fast": exact(beta_fast),
                "beta_slow": exact(beta_slow),
                "attention_factor": attention_factor.map(exact),
                "truncate": truncate,
            })
        }
        RopeScaling::Dynamic { .. } | RopeScaling::Factors { .. } => {
            let reason = "config.json cannot say this RoPE scaling";
            return Err(ModelError::Synthetic(reason.into()));
        }
    };
    parameters["rope_theta"] = json!(exact(spec.rope.theta));
    if spec.rope.dim != spec.head_dim {
        parameters["partial_rotary_factor"] = json!(f64::from(spec.rope.dim) / f64::from(spec.head_dim));
    }
    Ok(parameters)
}

/// The shortest decimal that reads back as this number: 1e-5 rather than 0.000009999999747378752.
fn exact(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(number.into())
}
