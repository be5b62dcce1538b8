use half::bf16;

use super::{KvPages, TILE_KEYS, log2_scale, window};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    ops::check_len,
};

/// Query positions of one block of the prefill kernel.
pub const PREFILL_ROWS: usize = 128;

/// Attention of a run of query positions a sequence, the last ones of its context.
#[derive(Debug, Clone, Copy)]
pub struct PrefillAttention<'a> {
    /// [tokens, heads, head_dim]
    pub out: View<'a, bf16>,
    pub queries: View<'a, bf16>,
    pub kv: KvPages<'a>,
    pub tables: View<'a, u32>,
    pub table_starts: View<'a, u32>,
    /// Positions of each sequence, its queries included.
    pub contexts: View<'a, u32>,
    /// Each sequence's first row of `queries`, and how many.
    pub query_starts: View<'a, u32>,
    pub query_counts: View<'a, u32>,
    /// [works, 2]: sequence, and its first query of [`PREFILL_ROWS`]; heaviest first.
    pub works: View<'a, u32>,
    pub work_count: usize,
    pub heads: usize,
    pub window: Option<u32>,
    pub scale: f32,
}

impl Device {
    pub fn prefill_attention(&self, op: PrefillAttention<'_>) -> Result<(), CudaError> {
        let KvPages { kv_heads, head_dim, .. } = op.kv;
        let kernel = match head_dim {
            64 => "attention_prefill_64",
            128 => "attention_prefill_128",
            other => return Err(CudaError::Unsupported(format!("heads of {other} elements"))),
        };
        op.kv.check(op.heads)?;
        check_len("works", op.works, 2 * op.work_count)?;
        let shared = (PREFILL_ROWS + 4 * TILE_KEYS) * head_dim * 2;
        let arguments = arguments![
            op.out,
            op.queries,
            op.kv.pages,
            op.tables,
            op.table_starts,
            op.contexts,
            op.query_starts,
            op.query_counts,
            op.works,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()? as i32,
            window(op.window),
            log2_scale(op.scale),
        ];
        let shape = Shape::new([op.work_count as u32, op.heads as u32, 1], 256).shared(shared);
        // SAFETY: signature of attention_prefill; works, tables and lengths on the device are trusted.
        unsafe { self.launch(kernel, shape, arguments) }
    }
}
