//! What files call the weights.

use super::{LayerWeight, WeightId};

/// In checkpoints of Hugging Face transformers.
pub(crate) fn safetensors(id: WeightId) -> String {
    match id {
        WeightId::Embedding => "model.embed_tokens.weight".into(),
        WeightId::FinalNorm => "model.norm.weight".into(),
        WeightId::Head => "lm_head.weight".into(),
        WeightId::Layer(layer, weight) => {
            let name = match weight {
                LayerWeight::AttentionNorm => "input_layernorm.weight",
                LayerWeight::Q => "self_attn.q_proj.weight",
                LayerWeight::K => "self_attn.k_proj.weight",
                LayerWeight::V => "self_attn.v_proj.weight",
                LayerWeight::QBias => "self_attn.q_proj.bias",
                LayerWeight::KBias => "self_attn.k_proj.bias",
                LayerWeight::VBias => "self_attn.v_proj.bias",
                LayerWeight::QNorm => "self_attn.q_norm.weight",
                LayerWeight::KNorm => "self_attn.k_norm.weight",
                LayerWeight::O => "self_attn.o_proj.weight",
                LayerWeight::MlpNorm => "post_attention_layernorm.weight",
                LayerWeight::Gate => "mlp.gate_proj.weight",
                LayerWeight::Up => "mlp.up_proj.weight",
                LayerWeight::Down => "mlp.down_proj.weight",
            };
            format!("model.layers.{layer}.{name}")
        }
    }
}

/// In GGUF files.
pub(crate) fn gguf(id: WeightId) -> String {
    match id {
        WeightId::Embedding => "token_embd.weight".into(),
        WeightId::FinalNorm => "output_norm.weight".into(),
        WeightId::Head => "output.weight".into(),
        WeightId::Layer(layer, weight) => {
            let name = match weight {
                LayerWeight::AttentionNorm => "attn_norm.weight",
                LayerWeight::Q => "attn_q.weight",
                LayerWeight::K => "attn_k.weight",
                LayerWeight::V => "attn_v.weight",
                LayerWeight::QBias => "attn_q.bias",
                LayerWeight::KBias => "attn_k.bias",
                LayerWeight::VBias => "attn_v.bias",
                LayerWeight::QNorm => "attn_q_norm.weight",
                LayerWeight::KNorm => "attn_k_norm.weight",
                LayerWeight::O => "attn_output.weight",
                LayerWeight::MlpNorm => "ffn_norm.weight",
                LayerWeight::Gate => "ffn_gate.weight",
                LayerWeight::Up => "ffn_up.weight",
                LayerWeight::Down => "ffn_down.weight",
            };
            format!("blk.{layer}.{name}")
        }
    }
}
