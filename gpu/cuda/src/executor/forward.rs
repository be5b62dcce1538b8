use half::bf16;

use super::{
    config::KvFormat,
    dimensions::Dimensions,
    float32::Float32,
    persistent::Persistent,
    plan::{Counts, Lists},
    slots::{MAX_BIAS, MAX_STOPS, Slots},
    weights::Weights,
};
use crate::{
    Buffer, CudaError, Device, View,
    ops::{
        CopyPages, Drawn, FUSED_ROWS, Gemm, GemmMode, GemmOutput, KvPages, KvView, RmsNorm, RowScale, Sample,
        Score, decode_tickets, part_stats,
    },
};

/// Rows whose logits are held at once, and most rows that are gathered in the last layer.
pub(super) const LOGIT_ROWS: usize = 256;

/// Words of a decode attention's queue.
pub(super) const QUEUE: usize = 2;
pub(super) const HALVES: usize = 2;

/// What a step keeps between its launches. Sizes are fixed at the start; graphs keep the addresses.
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
    unpacked: Option<Buffer<bf16>>,
    /// [LOGIT_ROWS, hidden]
    last: Buffer<bf16>,
    /// [LOGIT_ROWS, vocab]
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
        let Dimensions { hidden, vocab, intermediate, heads, kv_heads, head_dim, .. } = *dimensions;
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
            logits: device.allocate(LOGIT_ROWS * vocab)?,
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

/// How a step goes through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// One kernel after another.
    Launches,
    /// All of them in one.
    Persistent,
    /// Two halves of the rows beside each other: one attends while the other's products run.
    Halves,
}

/// The decoder on its device: everything that launches need.
#[derive(Debug)]
pub(super) struct Forward {
    pub dimensions: Dimensions,
    pub weights: Weights,
    /// Takes the place of all else that computes layers and logits.
    pub float32: Option<Float32>,
    pub buffers: Buffers,
    /// [layers, pages, keys and values, kv_heads, page_size, head_dim]
    pub kv: Buffer<u8>,
    pub kv_format: KvFormat,
    /// Of a page of one layer.
    pub page_bytes: usize,
    pub persistent: Option<Persistent>,
    pub page_size: usize,
    pub mode: GemmMode,
    /// Up to so many rows products do the halves of norms.
    pub fused_rows: usize,
}

impl Forward {
    /// Starts all launches of a step.
    pub fn run(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
        way: Way,
    ) -> Result<(), CudaError> {
        let layers = self.dimensions.layers;
        if counts.copies > 0 {
            device.copy_pages(CopyPages {
                kv: self.kv.view(),
                pairs: lists.copies,
                count: counts.copies,
                layers,
                page_bytes: self.page_bytes,
            })?;
        }
        if counts.tokens == 0 {
            return Ok(());
        }
        match (&self.float32, &self.persistent) {
            (Some(float32), _) => float32.layers(device, self, slots, lists, counts)?,
            (None, Some(persistent)) if way == Way::Persistent => {
                persistent.run(device, self, slots, lists, counts.tokens)?;
            }
            _ => self.launch_layers(device, slots, lists, counts, way)?,
        }
        self.sample(device, slots, lists, counts)?;
        self.score(device, lists, counts)
    }

    /// Keys and values of a layer.
    pub fn kv_pages(&self, number: usize) -> KvPages<'_> {
        let Dimensions { layers, kv_heads, head_dim, .. } = self.dimensions;
        let layer_len = self.kv.len() / layers;
        let pages = self.kv.slice(number * layer_len..(number + 1) * layer_len);
        KvPages {
            pages: match self.kv_format {
                KvFormat::Bf16 => KvView::Bf16(pages.cast()),
                KvFormat::Fp8E4m3 => KvView::Fp8(pages),
            },
            kv_heads,
            head_dim,
            page_size: self.page_size,
        }
    }

    fn sample(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
    ) -> Result<(), CudaError> {
        for first in (0..counts.rows).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(counts.rows - first);
            self.logits(device, counts, lists.rows.slice(first..), first, rows)?;
            device.sample(Sample {
                drawn: self.buffers.drawn.slice(first..),
                last_tokens: slots.last_tokens.view(),
                logits: self.buffers.logits.view(),
                slots: lists.row_slots.slice(first..),
                positions: lists.row_positions.slice(first..),
                params: slots.params.view(),
                bias: slots.bias.view(),
                stops: slots.stops.view(),
                counts: slots.counts.view(),
                prompts: slots.prompts.view(),
                rows,
                vocab: self.dimensions.vocab,
                max_bias: MAX_BIAS,
                max_stops: MAX_STOPS,
            })?;
        }
        Ok(())
    }

    fn score(&self, device: &Device, lists: Lists<'_>, counts: Counts) -> Result<(), CudaError> {
        for first in (0..counts.scores).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(counts.scores - first);
            self.logits(device, counts, lists.score_rows.slice(first..), counts.rows + first, rows)?;
            device.score(Score {
                scored: self.buffers.scored.slice(first..),
                logits: self.buffers.logits.view(),
                targets: lists.score_targets.slice(first..),
                tops: lists.score_tops.slice(first..),
                rows,
                vocab: self.dimensions.vocab,
            })?;
        }
        Ok(())
    }

    /// Logits of some rows of the residual stream, which begin at `first` of those gathered.
    fn logits(
        &self,
        device: &Device,
        counts: Counts,
        rows: View<'_, u32>,
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        if let Some(float32) = &self.float32 {
            return float32.logits(device, self, rows, count);
        }
        let Dimensions { hidden, vocab, eps, .. } = self.dimensions;
        let (stream, rows) = match counts.last {
            Some(_) => (self.buffers.last_hidden.slice(first * hidden..), None),
            None => (self.buffers.hidden.view(), Some(rows)),
        };
        device.rms_norm(RmsNorm {
            out: self.buffers.last.view(),
            hidden: stream,
            weight: self.weights.final_norm.view(),
            rows,
            scales: None,
            count,
            width: hidden,
            eps,
        })?;
        device.gemm(Gemm {
            output: GemmOutput::F32(self.buffers.logits.view()),
            x: self.buffers.last.view(),
            w: self.weights.head().view().into(),
            scale: RowScale::One,
            m: count,
            n: vocab,
            k: hidden,
            mode: self.mode,
            half: false,
        })
    }

    pub fn room(&self) -> Option<View<'_, bf16>> {
        self.buffers.unpacked.as_ref().map(Buffer::view)
    }
}
