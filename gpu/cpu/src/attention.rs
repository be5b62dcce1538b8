//! Causal grouped-query attention over paged keys and values, with the online softmax of FlashAttention (Dao et al.,
//! 2022), in one arithmetic order for prefill and decode.
//!
//! Positions are cut into tiles of 64 keys and segments of 256 at absolute places. Within a segment a query's scores,
//! maxima and sums are accumulated tile by tile, keys in ascending order; the results of segments are then merged in
//! ascending order. So a query's result depends on its position alone, not on which queries share its block, which
//! thread computed a segment, or whether it came as part of a prompt.

mod query;
mod rows;
mod span;
mod tile;

pub(crate) use query::{Inputs, Place, Projection, store_keys_values};
pub(crate) use rows::{Rows, merge};
pub(crate) use span::{Scratch, Span, attend, finish, tokens_per_span};

/// Keys of a tile.
pub(crate) const TILE: usize = 64;
/// Keys of a segment.
pub(crate) const SEGMENT: usize = 256;
/// Query rows (a head of a token) that a kernel takes at once.
pub(crate) const BLOCK_ROWS: usize = 8;
/// Query rows that a unit of work takes at most, where a group of heads is not larger itself.
pub(crate) const SPAN_ROWS: usize = 48;
