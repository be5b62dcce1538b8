use half::bf16;

use super::{KvPages, MAX_GROUP, log2_scale, window};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    ops::{GemmMode, check, check_len},
    sizes::{DECODE_RING_BYTES, DECODE_WARPS, QUERY_ROWS, TILE_KEYS},
};

/// Tiles of a run from which on blocks are better balanced by two shorter ones.
const LONG_RUN: usize = 16;
/// Multiprocessors that the products of a half of the rows have while the other half attends.
const PRODUCT_MULTIPROCESSORS: usize = 40;
/// Shared memory of a block: the ring of tiles, what is said of them, and room to align the ring.
const SHARED_BYTES: usize = DECODE_RING_BYTES + (16 << 10);

/// How the decode kernel shares out the sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct DecodeShare {
    window: Option<u32>,
    blocks: usize,
    /// Items of work that a run of tiles is.
    items: usize,
}

impl DecodeShare {
    /// Tiles of a query at the end of `context` positions.
    pub fn tiles(&self, context: usize) -> usize {
        let hidden = self.window.map_or(0, |window| context.saturating_sub(window as usize));
        context.div_ceil(TILE_KEYS) - hidden / TILE_KEYS
    }

    /// Runs that a sequence's tiles are cut into, of `all` tiles of the step: so many that every block has one, or two
    /// where they are long, and no more, since the tiles of all but the first leave parts to be folded.
    pub fn runs(&self, tiles: usize, all: usize) -> usize {
        if tiles == 0 {
            return 0;
        }
        let work = all * self.items;
        let runs = if work / self.blocks < LONG_RUN { self.blocks } else { 2 * self.blocks };
        (tiles * runs / work).clamp(1, tiles)
    }
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
    /// [sequences + 1]: [`DecodeShare::tiles`] and [`DecodeShare::runs`] of the sequences before each, and of all; those
    /// of other launches before the first may count.
    pub tile_starts: View<'a, u32>,
    pub run_starts: View<'a, u32>,
    /// Parts of sequences of several runs: [tiles, heads, head_dim] and [`part_stats`].
    pub part_values: View<'a, f32>,
    pub part_stats: View<'a, f32>,
    /// [`decode_tickets`], zero between launches.
    pub tickets: View<'a, u32>,
    /// [2], zero between launches.
    pub queue: View<'a, u32>,
    pub sequences: usize,
    /// At most so many tiles: bounds the launch, not the result.
    pub max_tiles: usize,
    pub heads: usize,
    pub window: Option<u32>,
    pub scale: f32,
    /// With [`GemmMode::BatchVariant`] a run leaves one part, so that bits depend on how sequences are cut.
    pub mode: GemmMode,
    /// Of one of two halves of the rows of a step, beside the products of the other.
    pub half: bool,
}

/// Elements of [`DecodeAttention::part_stats`].
pub fn part_stats(tiles: usize, heads: usize) -> usize {
    tiles * heads * DECODE_WARPS * 2
}

/// Elements of [`DecodeAttention::tickets`].
pub fn decode_tickets(sequences: usize, heads: usize, kv_heads: usize) -> usize {
    sequences * items(heads, kv_heads) * DECODE_WARPS
}

fn items(heads: usize, kv_heads: usize) -> usize {
    kv_heads * (heads / kv_heads).div_ceil(QUERY_ROWS)
}

impl Device {
    pub fn decode_share(&self, heads: usize, kv_heads: usize, window: Option<u32>) -> DecodeShare {
        let blocks = self.info().multiprocessors as usize;
        DecodeShare { window, blocks, items: items(heads, kv_heads) }
    }

    pub fn decode_attention(&self, op: DecodeAttention<'_>) -> Result<(), CudaError> {
        let KvPages { kv_heads, head_dim, .. } = op.kv;
        let kernel = match head_dim {
            64 => op.kv.pages.kernel(["attention_decode_64", "attention_decode_64_fp8"]),
            128 => op.kv.pages.kernel(["attention_decode_128", "attention_decode_128_fp8"]),
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
        check_len("run_starts", op.run_starts, op.sequences + 1)?;
        check_len("table_starts", op.table_starts, op.sequences)?;
        check_len("part_values", op.part_values, op.max_tiles * op.heads * head_dim)?;
        check_len("part_stats", op.part_stats, part_stats(op.max_tiles, op.heads))?;
        check_len("tickets", op.tickets, decode_tickets(op.sequences, op.heads, kv_heads))?;
        check_len("queue", op.queue, 2)?;
        let multiprocessors = self.info().multiprocessors as usize;
        let taken = if op.half { PRODUCT_MULTIPROCESSORS.min(multiprocessors / 2) } else { 0 };
        let blocks = (multiprocessors - taken).min(op.max_tiles * items(op.heads, kv_heads));
        let page_shift = op.kv.page_shift()?;
        let map = op.kv.pages.map(head_dim, op.kv.page_size.min(TILE_KEYS))?;
        let arguments = arguments![
            op.out,
            op.queries,
            op.tables,
            op.table_starts,
            op.contexts,
            op.tile_starts,
            op.run_starts,
            op.part_values,
            op.part_stats,
            op.tickets,
            op.queue,
            op.sequences as i32,
            op.heads as i32,
            kv_heads as i32,
            page_shift as i32,
            window(op.window),
            i32::from(op.mode == GemmMode::BatchVariant),
            i32::from(op.half),
            log2_scale(op.scale),
        ];
        let shape = Shape::new([blocks as u32, 1, 1], 32 * (DECODE_WARPS as u32 + 1)).shared(SHARED_BYTES);
        // SAFETY: signature of attention_decode; lengths checked, tables, contexts and starts are trusted.
        unsafe { self.launch_mapped(kernel, shape, &[map], arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::DecodeShare;

    const SHARE: DecodeShare = DecodeShare { window: None, blocks: 132, items: 8 };

    #[test]
    fn tiles_cover_the_context_and_no_more() {
        let tiles = [0, 1, 128, 129].map(|context| SHARE.tiles(context));
        assert_eq!(tiles, [0, 1, 1, 2]);
    }

    #[test]
    fn a_window_hides_the_first_tiles() {
        let share = DecodeShare { window: Some(128), ..SHARE };
        let tiles = [300, 256, 100].map(|context| share.tiles(context));
        assert_eq!(tiles, [2, 1, 1]);
    }

    #[test]
    fn few_sequences_are_cut_until_every_block_has_work() {
        assert_eq!(SHARE.runs(64, 64), 16);
        assert_eq!(SHARE.runs(8, 64), 2);
        assert_eq!(SHARE.runs(3, 3), 3);
    }

    #[test]
    fn many_sequences_stay_whole_unless_one_outgrows_the_others() {
        assert_eq!(SHARE.runs(9, 64 * 9), 1);
        assert_eq!(SHARE.runs(256, 64 * 9 + 256), 10);
        assert_eq!(SHARE.runs(0, 64), 0);
    }
}
