use serde::{Deserialize, Serialize};

/// What a decoder-only transformer of the Llama family is made of. Llama, Mistral, Qwen2 and Qwen3 differ
/// only in these fields.
///
/// One layer is `h += o(attention(rope(qk_norm(qkv(norm(h))))))`, then `h += down(silu(gate(norm(h))) * up(norm(h)))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderSpec {
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Elements per head; `heads * head_dim` need not equal `hidden_size`.
    pub head_dim: u32,
    /// Rows of the gate and up projections.
    pub intermediate_size: u32,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    pub rope: RopeSpec,
    /// Longest sequence, in tokens, that the model was made for.
    pub context_length: u32,
    /// Query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Queries and keys pass an RMSNorm per head before RoPE (Qwen3).
    pub qk_norm: bool,
    /// The output head is the embedding matrix.
    pub tied_embeddings: bool,
    /// A token attends to this many latest positions, itself included (Mistral 7B v0.1).
    pub sliding_window: Option<u32>,
}

impl DecoderSpec {
    /// Elements of one token's keys in one layer; values take as many.
    pub fn kv_width(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// Elements of one token's queries in one layer.
    pub fn query_width(&self) -> u32 {
        self.heads * self.head_dim
    }
}

/// Rotary position embedding over the first `dim` elements of a head, in the half-split ("NeoX") layout: element
/// `i` turns together with element `i + dim / 2`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeSpec {
    pub theta: f32,
    pub dim: u32,
    pub scaling: RopeScaling,
}

/// Frequency scalings as Hugging Face transformers defines them (`modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    #[default]
    None,
    Linear {
        factor: f32,
    },
    /// NTK-aware, base grows with the sequence beyond `original_context`.
    Dynamic {
        factor: f32,
        original_context: u32,
    },
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: u32,
    },
    Yarn {
        factor: f32,
        original_context: u32,
        beta_fast: f32,
        beta_slow: f32,
        /// Multiplies cosine and sine; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
        truncate: bool,
    },
    /// Each inverse frequency is divided by its own factor, `dim / 2` of them (as GGUF files store Llama 3's).
    Factors {
        factors: Vec<f32>,
    },
}
