use half::bf16;

use super::{KvPages, check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// What follows the QKV projection: bias, RMSNorm per head, rotary embedding; queries to `queries`, keys and values
/// into their pages.
#[derive(Debug, Clone, Copy)]
pub struct QkvHead<'a> {
    /// [tokens, heads, head_dim]
    pub queries: View<'a, bf16>,
    pub kv: KvPages<'a>,
    /// [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values
    pub qkv: View<'a, bf16>,
    /// [(heads + 2 * kv_heads) * head_dim]
    pub bias: Option<View<'a, bf16>>,
    /// Weights of the norm per query head and per key head, [head_dim].
    pub norms: Option<[View<'a, f32>; 2]>,
    /// [positions, head_dim / 2]
    pub cosines: View<'a, f32>,
    pub sines: View<'a, f32>,
    /// Absolute position of each token.
    pub positions: View<'a, u32>,
    /// Page times page size plus offset of each token; `u32::MAX` writes no keys and values.
    pub places: View<'a, u32>,
    pub tokens: usize,
    pub heads: usize,
    /// Elements of a head before it was padded to `head_dim`.
    pub norm_width: usize,
    pub eps: f32,
}

const WARPS: usize = 8;

impl Device {
    pub fn qkv_head(&self, op: QkvHead<'_>) -> Result<(), CudaError> {
        let KvPages { kv_heads, head_dim, .. } = op.kv;
        let kernel = match head_dim {
            64 => op.kv.pages.kernel(["qkv_head_64", "qkv_head_64_fp8"]),
            128 => op.kv.pages.kernel(["qkv_head_128", "qkv_head_128_fp8"]),
            other => return Err(CudaError::Unsupported(format!("heads of {other} elements"))),
        };
        let heads = op.heads + 2 * kv_heads;
        check_len("queries", op.queries, op.tokens * op.heads * head_dim)?;
        check_len("qkv", op.qkv, op.tokens * heads * head_dim)?;
        check_len("positions", op.positions, op.tokens)?;
        check_len("places", op.places, op.tokens)?;
        check(op.bias.is_none_or(|bias| bias.len() >= heads * head_dim), || "a bias for every row".into())?;
        check(op.norms.is_none_or(|norms| norms.iter().all(|n| n.len() >= head_dim)), || {
            "norms of a head's width".into()
        })?;
        let arguments = arguments![
            op.queries,
            op.kv.pages.address(),
            op.qkv,
            op.bias,
            op.norms.map(|norms| norms[0]),
            op.norms.map(|norms| norms[1]),
            op.cosines,
            op.sines,
            op.positions,
            op.places,
            op.tokens as i32,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()? as i32,
            op.norm_width as i32,
            op.eps,
        ];
        let blocks = (op.tokens * heads).div_ceil(WARPS);
        // SAFETY: signature of qkv_head; lengths checked, positions and places are trusted.
        unsafe { self.launch(kernel, Shape::new([blocks as u32, 1, 1], 32 * WARPS as u32), arguments) }
    }
}
