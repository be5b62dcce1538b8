use serde::{Deserialize, Serialize};

use super::RopeSpec;

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
