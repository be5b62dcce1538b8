use half::bf16;

use super::{
    config::KvFormat,
    dimensions::Dimensions,
    float32::Float32,
    persistent::Persistent,
    plan::{Counts, Lists},
    slots::{MAX_BIAS, MAX_STOPS, Slots},
    weights::{Layer, Weights},
};
use crate::{
    Buffer, CudaError, Device, View,
    ops::{
        CopyPages, DecodeAttention, Drawn, Embed, FUSED_ROWS, GatherRows, Gemm, GemmMode, GemmOutput,
        KvPages, KvView, NextNorm, PrefillAttention, QkvHead, RmsNorm, RowScale, Sample, Score,
        Weights as Matrix, decode_tickets, part_stats,
    },
};

/// Rows whose logits are held at once, and most rows that are gathered in the last layer.
pub(super) const LOGIT_ROWS: usize = 256;

/// What a step keeps between its launches. Sizes are fixed at the start; graphs keep the addresses.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Residual stream, [tokens, hidden].
    pub hidden: Buffer<f32>,
    /// Residual stream times the weights of the norm that follows, [tokens, hidden].
    weighed: Buffer<bf16>,
    /// What is left of that norm: sums of squares [FUSED_ROWS, hidden / 8] where products do it.
    squares: Buffer<f32>,
    scales: Buffer<f32>,
    /// [tokens, qkv width]
    qkv: Buffer<bf16>,
    /// [tokens, query width]
    queries: Buffer<bf16>,
    attended: Buffer<bf16>,
    /// [LOGIT_ROWS, hidden] and [LOGIT_ROWS, query width]: rows of `hidden` and `attended`, gathered.
    last_hidden: Buffer<f32>,
    last_attended: Buffer<bf16>,
    /// [tokens, intermediate]
    gated: Buffer<bf16>,
    /// Where weights in FP8 are unpacked for many rows.
    unpacked: Option<Buffer<bf16>>,
    /// [LOGIT_ROWS, hidden]
    last: Buffer<bf16>,
    /// [LOGIT_ROWS, vocab]
    pub logits: Buffer<f32>,
    part_values: Buffer<f32>,
    part_stats: Buffer<f32>,
    tickets: Buffer<u32>,
    queue: Buffer<u32>,
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
            queue: device.allocate(2)?,
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
}

/// Rows on their way through a layer.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    /// Residual stream, [count, hidden].
    hidden: View<'a, f32>,
    /// [count, query width]
    attended: View<'a, bf16>,
    count: usize,
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
            _ => self.launch_layers(device, slots, lists, counts)?,
        }
        self.sample(device, slots, lists, counts)?;
        self.score(device, lists, counts)
    }

    /// Embedding and layers, one operation after another.
    fn launch_layers(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
    ) -> Result<(), CudaError> {
        device.embed(Embed {
            hidden: self.buffers.hidden.view(),
            table: self.weights.embedding.view(),
            ids: lists.ids,
            slots: lists.token_slots,
            last_tokens: slots.last_tokens.view(),
            next: self
                .next_norm(self.weights.layers.first().map(|layer| &layer.attention_norm), counts.tokens),
            tokens: counts.tokens,
            width: self.dimensions.hidden,
        })?;
        let every = Rows {
            hidden: self.buffers.hidden.view(),
            attended: self.buffers.attended.view(),
            count: counts.tokens,
        };
        for (number, layer) in self.weights.layers.iter().enumerate() {
            let following = self.weights.layers.get(number + 1).map(|layer| &layer.attention_norm);
            self.project(device, layer, number, lists, counts.tokens)?;
            let rows = match counts.last {
                // nobody asks for more of these tokens than their keys and values
                Some(0) if following.is_none() => break,
                Some(_) if following.is_none() => {
                    self.attend(device, number, lists, counts, (lists.last_works, counts.last_works))?;
                    self.gather(device, lists, counts, every)?
                }
                _ => {
                    self.attend(device, number, lists, counts, (lists.works, counts.works))?;
                    every
                }
            };
            let sum = self.residual(Some(&layer.mlp_norm), rows);
            let sizes = [rows.count, self.dimensions.hidden, self.dimensions.query_width()];
            self.gemm(device, sum, rows.attended, RowScale::One, layer.o.view(self.room()), sizes)?;
            self.feed_forward(device, layer, following, rows)?;
        }
        Ok(())
    }

    /// Rows whose logits are asked for: others need no more of the last layer.
    fn gather<'a>(
        &'a self,
        device: &Device,
        lists: Lists<'_>,
        counts: Counts,
        every: Rows<'_>,
    ) -> Result<Rows<'a>, CudaError> {
        let buffers = &self.buffers;
        let (hidden_width, attended_width) = (self.dimensions.hidden, self.dimensions.query_width());
        let gathered = [(0, lists.rows, counts.rows), (counts.rows, lists.score_rows, counts.scores)];
        for (first, rows, count) in gathered {
            device.gather_rows(GatherRows {
                hidden: [every.hidden, buffers.last_hidden.slice(first * hidden_width..)],
                attended: [every.attended, buffers.last_attended.slice(first * attended_width..)],
                rows,
                count,
                hidden_width,
                attended_width,
            })?;
        }
        let (hidden, attended) = (buffers.last_hidden.view(), buffers.last_attended.view());
        Ok(Rows { hidden, attended, count: counts.rows + counts.scores })
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

    /// Queries, keys and values.
    fn project(
        &self,
        device: &Device,
        layer: &Layer,
        number: usize,
        lists: Lists<'_>,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let (dimensions, buffers) = (&self.dimensions, &self.buffers);
        let Dimensions { heads, hidden, .. } = *dimensions;
        let scale = self.norm(device, &layer.attention_norm, buffers.hidden.view(), tokens)?;
        let qkv = GemmOutput::Heads(QkvHead {
            queries: buffers.queries.view(),
            kv: self.kv_pages(number),
            qkv: buffers.qkv.view(),
            bias: layer.qkv_bias.as_ref().map(Buffer::view),
            norms: layer.head_norms.as_ref().map(|[q, k]| [q.view(), k.view()]),
            cosines: self.weights.cosines.view(),
            sines: self.weights.sines.view(),
            positions: lists.positions,
            places: lists.places,
            tokens,
            heads,
            norm_width: dimensions.model_head_dim,
            eps: dimensions.eps,
        });
        let sizes = [tokens, dimensions.qkv_width(), hidden];
        self.gemm(device, qkv, buffers.weighed.view(), scale, layer.qkv.view(self.room()), sizes)
    }

    /// Attention of sequences of one token, and of these blocks of the others.
    fn attend(
        &self,
        device: &Device,
        number: usize,
        lists: Lists<'_>,
        counts: Counts,
        (works, work_count): (View<'_, u32>, usize),
    ) -> Result<(), CudaError> {
        let (dimensions, buffers) = (&self.dimensions, &self.buffers);
        let Dimensions { heads, window, .. } = *dimensions;
        let kv = self.kv_pages(number);
        if counts.decodes > 0 {
            device.decode_attention(DecodeAttention {
                out: buffers.attended.view(),
                queries: buffers.queries.view(),
                kv,
                tables: lists.tables,
                table_starts: lists.decode_tables,
                contexts: lists.decode_contexts,
                tile_starts: lists.tile_starts,
                run_starts: lists.run_starts,
                part_values: buffers.part_values.view(),
                part_stats: buffers.part_stats.view(),
                tickets: buffers.tickets.view(),
                queue: buffers.queue.view(),
                sequences: counts.decodes,
                max_tiles: buffers.max_tiles,
                heads,
                window,
                scale: dimensions.scale(),
                mode: self.mode,
            })?;
        }
        if work_count > 0 {
            device.prefill_attention(PrefillAttention {
                out: buffers.attended.view(),
                queries: buffers.queries.view(),
                kv,
                tables: lists.tables,
                table_starts: lists.prefill_tables,
                contexts: lists.prefill_contexts,
                query_starts: lists.query_starts,
                query_counts: lists.query_counts,
                works,
                work_count,
                heads,
                window,
                scale: dimensions.scale(),
            })?;
        }
        Ok(())
    }

    fn feed_forward(
        &self,
        device: &Device,
        layer: &Layer,
        following: Option<&Buffer<f32>>,
        rows: Rows<'_>,
    ) -> Result<(), CudaError> {
        let buffers = &self.buffers;
        let Dimensions { hidden, intermediate, .. } = self.dimensions;
        let scale = self.norm(device, &layer.mlp_norm, rows.hidden, rows.count)?;
        let gate = GemmOutput::Gate(buffers.gated.view());
        let sizes = [rows.count, 2 * intermediate, hidden];
        self.gemm(device, gate, buffers.weighed.view(), scale, layer.gate_up.view(self.room()), sizes)?;
        let sum = self.residual(following, rows);
        let sizes = [rows.count, hidden, intermediate];
        self.gemm(device, sum, buffers.gated.view(), RowScale::One, layer.down.view(self.room()), sizes)
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
        let head = self.weights.head().view().into();
        let logits = GemmOutput::F32(self.buffers.logits.view());
        self.gemm(device, logits, self.buffers.last.view(), RowScale::One, head, [count, vocab, hidden])
    }

    /// What the makers of few rows do of the norm with these weights.
    fn next_norm<'a>(&'a self, weight: Option<&'a Buffer<f32>>, tokens: usize) -> Option<NextNorm<'a>> {
        let weight = weight.filter(|_| tokens <= self.fused_rows)?.view();
        Some(NextNorm { weight, weighed: self.buffers.weighed.view(), squares: self.buffers.squares.view() })
    }

    /// The residual stream as the output of a product, before the norm with these weights.
    fn residual<'a>(&'a self, weight: Option<&'a Buffer<f32>>, rows: Rows<'a>) -> GemmOutput<'a> {
        let sum = rows.hidden;
        match self.next_norm(weight, rows.count) {
            Some(next) => GemmOutput::AddNorm { sum, next },
            None => GemmOutput::AddF32(sum),
        }
    }

    /// What is left to do of a norm of the residual stream: of few rows the products around it do all.
    fn norm(
        &self,
        device: &Device,
        weight: &Buffer<f32>,
        stream: View<'_, f32>,
        tokens: usize,
    ) -> Result<RowScale<'_>, CudaError> {
        let Dimensions { hidden, eps, .. } = self.dimensions;
        if tokens <= self.fused_rows {
            return Ok(RowScale::Rms { squares: self.buffers.squares.view(), eps });
        }
        let scales = (self.mode == GemmMode::BatchInvariant).then(|| self.buffers.scales.view());
        device.rms_norm(RmsNorm {
            out: self.buffers.weighed.view(),
            hidden: stream,
            weight: weight.view(),
            rows: None,
            scales,
            count: tokens,
            width: hidden,
            eps,
        })?;
        Ok(scales.map_or(RowScale::One, RowScale::Given))
    }

    fn room(&self) -> Option<View<'_, bf16>> {
        self.buffers.unpacked.as_ref().map(Buffer::view)
    }

    fn gemm(
        &self,
        device: &Device,
        output: GemmOutput<'_>,
        x: View<'_, bf16>,
        scale: RowScale<'_>,
        w: Matrix<'_>,
        [m, n, k]: [usize; 3],
    ) -> Result<(), CudaError> {
        device.gemm(Gemm { output, x, w, scale, m, n, k, mode: self.mode })
    }
}
