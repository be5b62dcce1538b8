//! What a step keeps between its launches.

use half::bf16;

use super::dimensions::Dimensions;
use crate::{
    Buffer, CudaError, Device,
    ops::{Drawn, FUSED_ROWS, decode_tickets, part_stats},
};

/// Rows whose logits are held at once, and most rows that are gathered in the last layer.
pub(super) const LOGIT_ROWS: usize = 256;

/// Words of a decode attention's queue.
pub(super) const QUEUE: usize = 2;
pub(super) const HALVES: usize = 2;

/// Sizes are fixed at the start; graphs keep the addresses.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Residual stream, [tokens, hidden].
    pub hidden: Buffer<f32>,
    /// Residual stream times the weights of the norm that follows, [tokens, hidden].
    pub weighed: Buffer<bf16>,
    /// What is left of that norm: sums of squares [FUSED_ROWS, hidden / 8] where products do it.
    pub squares: Buffer<f32>,
    pub scales: Buffer<f32>,
    /// [tokens, qkv width]
    pub qkv: Buffer<bf16>,
    /// [tokens, query width]
    pub queries: Buffer<bf16>,
    pub attended: Buffer<bf16>,
    /// [LOGIT_ROWS, hidden] and [LOGIT_ROWS, query width]: rows of `hidden` and `attended`, gathered.
    pub last_hidden: Buffer<f32>,
    pub last_attended: Buffer<bf16>,
    /// [tokens, intermediate]
    pub gated: Buffer<bf16>,
    /// Where weights in FP8 are unpacked for many rows.
    pub unpacked: Option<Buffer<bf16>>,
    /// [LOGIT_ROWS, hidden]
    pub last: Buffer<bf16>,
    /// [LOGIT_ROWS, logit columns]
    pub logits: Buffer<f32>,
    pub part_values: Buffer<f32>,
    pub part_stats: Buffer<f32>,
    pub tickets: Buffer<u32>,
    pub queue: Buffer<u32>,
    /// [slots]
    pub drawn: Buffer<Drawn>,
    /// [tokens]
    pub scored: Buffer<Drawn>,
    /// Tiles that the decode kernel has room for.
    pub max_tiles: usize,
}

/// Bytes for the parts of sequences of several tiles: a bound on the decode kernel, not on contexts (what is beyond it
/// goes to the prefill kernel).
const PART_BYTES: usize = 256 << 20;

impl Buffers {
    pub fn new(
        device: &Device,
        dimensions: &Dimensions,
        tokens: usize,
        slots: usize,
        room: usize,
    ) -> Result<Self, CudaError> {
        let Dimensions { hidden, intermediate, heads, kv_heads, head_dim, .. } = *dimensions;
        let max_tiles = PART_BYTES / (heads * head_dim * 4);
        let buffers = Self {
            hidden: device.allocate(tokens * hidden)?,
            weighed: device.allocate(tokens * hidden)?,
            squares: device.allocate(FUSED_ROWS * hidden / 8)?,
            scales: device.allocate(tokens)?,
            qkv: device.allocate(tokens * dimensions.qkv_width())?,
            queries: device.allocate(tokens * dimensions.query_width())?,
            attended: device.allocate(tokens * dimensions.query_width())?,
            last_hidden: device.allocate(LOGIT_ROWS * hidden)?,
            last_attended: device.allocate(LOGIT_ROWS * dimensions.query_width())?,
            gated: device.allocate(tokens * intermediate)?,
            unpacked: if room > 0 { Some(device.allocate(room)?) } else { None },
            last: device.allocate(LOGIT_ROWS * hidden)?,
            logits: device.allocate(LOGIT_ROWS * dimensions.logit_columns())?,
            part_values: device.allocate(max_tiles * heads * head_dim)?,
            part_stats: device.allocate(part_stats(max_tiles, heads))?,
            tickets: device.allocate(decode_tickets(tokens, heads, kv_heads))?,
            queue: device.allocate(QUEUE * HALVES)?,
            drawn: device.allocate(slots)?,
            scored: device.allocate(tokens)?,
            max_tiles,
        };
        device.fill_bytes(buffers.tickets.view(), 0)?;
        device.fill_bytes(buffers.queue.view(), 0)?;
        // rows of padding are attended by nobody: what they hold must be numbers
        device.fill_bytes(buffers.attended.view(), 0)?;
        Ok(buffers)
    }
}
