use half::bf16;

use super::{KvPages, TILE_KEYS, log2_scale, window};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    ops::{check, check_len},
};

/// Query heads that may share a key head.
const MAX_GROUP: usize = 16;
const BLOCKS_PER_MULTIPROCESSOR: usize = 3;

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
        let blocks = self.info().multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR;
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
