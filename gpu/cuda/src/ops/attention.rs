use half::bf16;

use super::{check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// Keys of one attention tile, at absolute positions: part of the canonical order.
pub const TILE_KEYS: usize = 128;
/// Query positions of one block of the prefill kernel.
pub const PREFILL_ROWS: usize = 128;
/// Query heads that may share a key head.
const MAX_GROUP: usize = 16;
/// A tile has at most as many pages as a warp has lanes.
const MIN_PAGE_SIZE: usize = TILE_KEYS / 32;
const DECODE_BLOCKS_PER_MULTIPROCESSOR: usize = 3;

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub struct KvPages<'a> {
    /// [pages, keys and values, kv_heads, page_size, head_dim]
    pub pages: View<'a, bf16>,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A power of two, at least 4.
    pub page_size: usize,
}

impl KvPages<'_> {
    pub(super) fn page_shift(&self) -> Result<u32, CudaError> {
        check(self.page_size.is_power_of_two() && self.page_size >= MIN_PAGE_SIZE, || {
            format!("pages of {} tokens", self.page_size)
        })?;
        Ok(self.page_size.trailing_zeros())
    }
}

/// Tiles that the decode kernel visits for a query at the end of `context` positions.
pub fn decode_tiles(context: usize, window: Option<u32>) -> usize {
    let hidden = window.map_or(0, |window| context.saturating_sub(window as usize));
    context.div_ceil(TILE_KEYS) - hidden / TILE_KEYS
}

/// Attention of one query position a sequence, the last of its context.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// [sequences, heads, head_dim]
    pub out: View<'a, bf16>,
    pub queries: View<'a, bf16>,
    pub kv: KvPages<'a>,
    /// Page tables of all sequences, and where each starts.
    pub tables: View<'a, u32>,
    pub table_starts: View<'a, u32>,
    /// Positions of each sequence, the query's included; 0: no query.
    pub contexts: View<'a, u32>,
    /// [sequences + 1]: [`decode_tiles`] of the sequences before each, and of all.
    pub tile_starts: View<'a, u32>,
    /// Parts of sequences of several tiles: [tiles, heads, head_dim] and [tiles, heads, 2].
    pub part_values: View<'a, f32>,
    pub part_stats: View<'a, f32>,
    /// [sequences, kv_heads], zero between launches.
    pub tickets: View<'a, u32>,
    /// [2], zero between launches.
    pub queue: View<'a, u32>,
    pub sequences: usize,
    /// At most so many tiles: bounds the launch, not the result.
    pub max_tiles: usize,
    pub heads: usize,
    pub window: Option<u32>,
    pub scale: f32,
}

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

/// Kernels take scores in units of log2.
fn log2_scale(scale: f32) -> f32 {
    scale * std::f32::consts::LOG2_E
}

fn window(window: Option<u32>) -> i32 {
    window.map_or(i32::MAX, |window| window.min(i32::MAX as u32) as i32)
}

impl KvPages<'_> {
    fn check(&self, heads: usize) -> Result<(), CudaError> {
        check(self.kv_heads > 0 && heads.is_multiple_of(self.kv_heads), || {
            format!("{heads} heads over {} key heads", self.kv_heads)
        })
    }
}

impl Device {
    pub fn decode_attention(&self, op: DecodeAttention<'_>) -> Result<(), CudaError> {
        let KvPages { kv_heads, head_dim, .. } = op.kv;
        let kernel = match head_dim {
            64 => "attention_decode_64",
            128 => "attention_decode_128",
            other => return Err(CudaError::Unsupported(format!("heads of {other} elements"))),
        };
        op.kv.check(op.heads)?;
        check(op.heads / kv_heads <= MAX_GROUP, || {
            format!("{} query heads a key head", op.heads / kv_heads)
        })?;
        check_len("out", op.out, op.sequences * op.heads * head_dim)?;
        check_len("queries", op.queries, op.sequences * op.heads * head_dim)?;
        check_len("tile_starts", op.tile_starts, op.sequences + 1)?;
        check_len("contexts", op.contexts, op.sequences)?;
        check_len("table_starts", op.table_starts, op.sequences)?;
        check_len("part_values", op.part_values, op.max_tiles * op.heads * head_dim)?;
        check_len("part_stats", op.part_stats, op.max_tiles * op.heads * 2)?;
        check_len("tickets", op.tickets, op.sequences * kv_heads)?;
        check_len("queue", op.queue, 2)?;
        let blocks = self.info().multiprocessors as usize * DECODE_BLOCKS_PER_MULTIPROCESSOR;
        let blocks = blocks.min(op.max_tiles * kv_heads);
        let shared =
            2 * TILE_KEYS * head_dim * 2 + 16 * head_dim * 2 + 16 * TILE_KEYS * 2 + (op.sequences + 1) * 4;
        let arguments = arguments![
            op.out,
            op.queries,
            op.kv.pages,
            op.tables,
            op.table_starts,
            op.contexts,
            op.tile_starts,
            op.part_values,
            op.part_stats,
            op.tickets,
            op.queue,
            op.sequences as i32,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()? as i32,
            window(op.window),
            log2_scale(op.scale),
        ];
        // SAFETY: signature of attention_decode; lengths checked, tables, contexts and tile starts are trusted.
        unsafe { self.launch(kernel, Shape::new([blocks as u32, 1, 1], 128).shared(shared), arguments) }
    }

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

#[cfg(test)]
mod tests {
    use super::decode_tiles;

    #[test]
    fn tiles_cover_the_context_and_no_more() {
        assert_eq!(decode_tiles(1, None), 1);
        assert_eq!(decode_tiles(128, None), 1);
        assert_eq!(decode_tiles(129, None), 2);
        assert_eq!(decode_tiles(0, None), 0);
    }

    #[test]
    fn a_window_hides_the_first_tiles() {
        assert_eq!(decode_tiles(300, Some(128)), 2);
        assert_eq!(decode_tiles(256, Some(128)), 1);
        assert_eq!(decode_tiles(100, Some(128)), 1);
    }
}
