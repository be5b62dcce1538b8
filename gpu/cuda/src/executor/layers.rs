//! The layers of a step, one operation after another.

use std::ops::Range;

use half::bf16;

use super::{
    block::{Counts, Lists},
    buffers::{HALVES, QUEUE},
    decoder::Decoder,
    dimensions::Dimensions,
    forward::{Forward, Way},
    matrix::LayerMatrix,
    slots::Slots,
    weights::Layer,
};
use crate::{
    Buffer, CudaError, Device, View,
    ops::{
        DecodeAttention, Embed, GatherRows, Gemm, GemmMode, GemmOutput, NextNorm, PrefillAttention, QkvHead,
        RmsNorm, RowScale, decode_tickets,
    },
};

/// Rows of a step that go through a layer together, and where what becomes of them is.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    /// Which half of the step's rows they are, if the other runs beside them.
    half: Option<usize>,
    /// The first of them in the step.
    first: usize,
    count: usize,
    /// Residual stream, [count, hidden].
    hidden: View<'a, f32>,
    /// The same times the weights of the norm that follows.
    weighed: View<'a, bf16>,
    /// What is left of that norm, [count, hidden / 8].
    squares: View<'a, f32>,
    /// [count, query width]
    queries: View<'a, bf16>,
    attended: View<'a, bf16>,
    /// [count, intermediate]
    gated: View<'a, bf16>,
}

impl Forward {
    /// Embedding and layers.
    pub(super) fn launch_layers(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
        way: Way,
    ) -> Result<(), CudaError> {
        let Decoder { dimensions, weights, .. } = &self.decoder;
        let every = self.rows(None, 0..counts.tokens);
        device.embed(Embed {
            hidden: every.hidden,
            table: weights.embedding.view(),
            ids: lists.ids,
            slots: lists.token_slots,
            last_tokens: slots.last_tokens.view(),
            next: self.next_norm(weights.layers.first().map(|layer| &layer.attention_norm), every),
            tokens: counts.tokens,
            width: dimensions.hidden,
        })?;
        if way != Way::Halves {
            return self.layers(device, lists, counts, every);
        }
        let middle = counts.tokens.div_ceil(HALVES);
        device.beside(|device, half| {
            let rows = if half == 0 { 0..middle } else { middle..counts.tokens };
            self.layers(device, lists, counts, self.rows(Some(half), rows))
        })
    }

    fn rows(&self, half: Option<usize>, rows: Range<usize>) -> Rows<'_> {
        let Decoder { dimensions, buffers, .. } = &self.decoder;
        let (first, hidden, query_width) = (rows.start, dimensions.hidden, dimensions.query_width());
        Rows {
            half,
            first,
            count: rows.len(),
            hidden: buffers.hidden.slice(first * hidden..),
            weighed: buffers.weighed.slice(first * hidden..),
            squares: buffers.squares.slice(first * (hidden / 8)..),
            queries: buffers.queries.slice(first * query_width..),
            attended: buffers.attended.slice(first * query_width..),
            gated: buffers.gated.slice(first * dimensions.intermediate..),
        }
    }

    fn layers(
        &self,
        device: &Device,
        lists: Lists<'_>,
        counts: Counts,
        every: Rows<'_>,
    ) -> Result<(), CudaError> {
        let Decoder { dimensions, weights, .. } = &self.decoder;
        for (number, layer) in weights.layers.iter().enumerate() {
            let following = weights.layers.get(number + 1).map(|layer| &layer.attention_norm);
            self.project(device, layer, number, lists, every)?;
            let rows = match counts.last {
                // nobody asks for more of these tokens than their keys and values
                Some(0) if following.is_none() => break,
                Some(_) if following.is_none() => {
                    self.attend(device, number, lists, counts, (lists.last_works, counts.last_works), every)?;
                    self.gather(device, lists, counts, every)?
                }
                _ => {
                    self.attend(device, number, lists, counts, (lists.works, counts.works), every)?;
                    every
                }
            };
            let sum = self.residual(Some(&layer.mlp_norm), rows);
            let sizes = [dimensions.hidden, dimensions.query_width()];
            self.product(device, rows, sum, (rows.attended, RowScale::One), &layer.o, sizes)?;
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
        let Decoder { dimensions, buffers, .. } = &self.decoder;
        let (hidden_width, attended_width) = (dimensions.hidden, dimensions.query_width());
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
        Ok(Rows { hidden, attended, ..self.rows(None, 0..counts.rows + counts.scores) })
    }

    /// Queries, keys and values.
    fn project(
        &self,
        device: &Device,
        layer: &Layer,
        number: usize,
        lists: Lists<'_>,
        rows: Rows<'_>,
    ) -> Result<(), CudaError> {
        let Decoder { dimensions, weights, buffers, .. } = &self.decoder;
        let Dimensions { heads, hidden, .. } = *dimensions;
        let scale = self.norm(device, &layer.attention_norm, rows)?;
        let qkv = GemmOutput::Heads(QkvHead {
            queries: rows.queries,
            kv: self.decoder.kv_pages(number),
            qkv: buffers.qkv.slice(rows.first * dimensions.qkv_width()..),
            bias: layer.qkv_bias.as_ref().map(Buffer::view),
            norms: layer.head_norms.as_ref().map(|[q, k]| [q.view(), k.view()]),
            cosines: weights.cosines.view(),
            sines: weights.sines.view(),
            positions: lists.positions.slice(rows.first..),
            places: lists.places.slice(rows.first..),
            tokens: rows.count,
            heads,
            norm_width: dimensions.model_head_dim,
            eps: dimensions.eps,
        });
        let sizes = [dimensions.qkv_width(), hidden];
        self.product(device, rows, qkv, (rows.weighed, scale), &layer.qkv, sizes)
    }

    /// Attention of sequences of one token, and of these blocks of the others.
    fn attend(
        &self,
        device: &Device,
        number: usize,
        lists: Lists<'_>,
        counts: Counts,
        (works, work_count): (View<'_, u32>, usize),
        rows: Rows<'_>,
    ) -> Result<(), CudaError> {
        let Decoder { dimensions, buffers, .. } = &self.decoder;
        let Dimensions { heads, kv_heads, window, .. } = *dimensions;
        let kv = self.decoder.kv_pages(number);
        let sequences = counts.decodes.saturating_sub(rows.first).min(rows.count);
        if sequences > 0 {
            device.decode_attention(DecodeAttention {
                out: rows.attended,
                queries: rows.queries,
                kv,
                tables: lists.tables,
                table_starts: lists.decode_tables.slice(rows.first..),
                contexts: lists.decode_contexts.slice(rows.first..),
                tile_starts: lists.tile_starts.slice(rows.first..),
                run_starts: lists.run_starts.slice(rows.first..),
                part_values: buffers.part_values.view(),
                part_stats: buffers.part_stats.view(),
                tickets: buffers.tickets.slice(decode_tickets(rows.first, heads, kv_heads)..),
                queue: buffers.queue.slice(rows.half.unwrap_or(0) * QUEUE..),
                sequences,
                max_tiles: buffers.max_tiles,
                heads,
                window,
                scale: dimensions.scale(),
                mode: self.mode,
                half: rows.half.is_some(),
            })?;
        }
        if work_count > 0 {
            device.prefill_attention(PrefillAttention {
                out: rows.attended,
                queries: rows.queries,
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
                mode: self.mode,
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
        let Dimensions { hidden, intermediate, .. } = self.decoder.dimensions;
        let scale = self.norm(device, &layer.mlp_norm, rows)?;
        let gate = GemmOutput::Gate(rows.gated);
        let sizes = [2 * intermediate, hidden];
        self.product(device, rows, gate, (rows.weighed, scale), &layer.gate_up, sizes)?;
        let sum = self.residual(following, rows);
        let sizes = [hidden, intermediate];
        self.product(device, rows, sum, (rows.gated, RowScale::One), &layer.down, sizes)
    }

    /// A product of these rows.
    fn product(
        &self,
        device: &Device,
        rows: Rows<'_>,
        output: GemmOutput<'_>,
        (x, scale): (View<'_, bf16>, RowScale<'_>),
        w: &LayerMatrix,
        [n, k]: [usize; 2],
    ) -> Result<(), CudaError> {
        let (w, half) = (w.view(self.decoder.room()), rows.half.is_some());
        device.gemm(Gemm { output, x, w, scale, m: rows.count, n, k, mode: self.mode, half })
    }

    /// What the makers of few rows do of the norm with these weights.
    fn next_norm<'a>(&self, weight: Option<&'a Buffer<f32>>, rows: Rows<'a>) -> Option<NextNorm<'a>> {
        let weight = weight.filter(|_| rows.count <= self.fused_rows)?.view();
        Some(NextNorm { weight, weighed: rows.weighed, squares: rows.squares })
    }

    /// The residual stream as the output of a product, before the norm with these weights.
    fn residual<'a>(&self, weight: Option<&'a Buffer<f32>>, rows: Rows<'a>) -> GemmOutput<'a> {
        let sum = rows.hidden;
        match self.next_norm(weight, rows) {
            Some(next) => GemmOutput::AddNorm { sum, next },
            None => GemmOutput::AddF32(sum),
        }
    }

    /// What is left to do of a norm of the residual stream: of few rows the products around it do all.
    fn norm<'a>(
        &'a self,
        device: &Device,
        weight: &Buffer<f32>,
        rows: Rows<'a>,
    ) -> Result<RowScale<'a>, CudaError> {
        let Dimensions { hidden, eps, .. } = self.decoder.dimensions;
        if rows.count <= self.fused_rows {
            return Ok(RowScale::Rms { squares: rows.squares, eps });
        }
        let scales = (self.mode == GemmMode::BatchInvariant).then(|| self.decoder.buffers.scales.view());
        device.rms_norm(RmsNorm {
            out: rows.weighed,
            hidden: rows.hidden,
            weight: weight.view(),
            rows: None,
            scales,
            count: rows.count,
            width: hidden,
            eps,
        })?;
        Ok(scales.map_or(RowScale::One, RowScale::Given))
    }
}
