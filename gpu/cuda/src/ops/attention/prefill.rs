use half::bf16;

use super::{KvPages, KvView, log2_scale, window};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    ops::{GemmMode, check, check_len},
    sizes::{PREFILL_CODE_STAGES, PREFILL_GROUPS, PREFILL_ROWS, PREFILL_STAGES, TILE_KEYS},
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Those that compute, and a group that copies.
const THREADS: u32 = 128 * (PREFILL_GROUPS as u32 + 1);

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
    pub mode: GemmMode,
}

impl Device {
    pub fn prefill_attention(&self, op: PrefillAttention<'_>) -> Result<(), CudaError> {
        let KvPages { kv_heads, head_dim, .. } = op.kv;
        let [canonical, variant, fp8] = match head_dim {
            64 => ["attention_prefill_64", "attention_prefill_64_variant", "attention_prefill_64_fp8"],
            128 => ["attention_prefill_128", "attention_prefill_128_variant", "attention_prefill_128_fp8"],
            other => return Err(CudaError::Unsupported(format!("heads of {other} elements"))),
        };
        let kernel = match (op.kv.pages, op.mode) {
            (KvView::Bf16(_), GemmMode::BatchInvariant) => canonical,
            (KvView::Bf16(_), GemmMode::BatchVariant) => variant,
            (KvView::Fp8(_), _) => fp8,
        };
        op.kv.check(op.heads)?;
        check_len("works", op.works, 2 * op.work_count)?;
        let width = op.heads * head_dim;
        let kv_rows = op.kv.pages.len() / head_dim;
        check(i32::try_from(kv_rows).is_ok(), || format!("{kv_rows} rows of keys and values"))?;
        let maps = [
            TensorMap::new(op.queries, [op.queries.len() / width, width], PREFILL_ROWS)?,
            op.kv.pages.map(head_dim, op.kv.page_size.min(TILE_KEYS))?,
        ];
        let arguments = arguments![
            op.out,
            op.tables,
            op.table_starts,
            op.contexts,
            op.query_starts,
            op.query_counts,
            op.works,
            op.work_count as i32,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()? as i32,
            window(op.window),
            log2_scale(op.scale),
        ];
        let pairs = (op.work_count * op.heads).div_ceil(2).min(self.info().multiprocessors as usize / 2);
        let (stages, codes) = match op.kv.pages {
            KvView::Bf16(_) => (PREFILL_STAGES, 0),
            KvView::Fp8(_) => (PREFILL_CODE_STAGES, 2 * TILE_KEYS * head_dim),
        };
        let tiles = (PREFILL_ROWS + stages * 2 * TILE_KEYS) * head_dim * 2;
        let shape = Shape::new([2 * pairs as u32, 1, 1], THREADS).shared(tiles + codes + SWIZZLE_ALIGNMENT);
        // SAFETY: signature of attention_prefill; works, tables and lengths on the device are trusted.
        unsafe { self.launch_mapped(kernel, shape, &maps, arguments) }
    }
}
