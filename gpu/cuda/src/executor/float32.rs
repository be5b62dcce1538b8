//! A decoder in f32 from weights to keys and values: slow, to check others against.

use models::{LayerWeight, Model, WeightId};

use super::{
    block::{Counts, Lists},
    buffers::LOGIT_ROWS,
    decoder::Decoder,
    dimensions::Dimensions,
    head_layout::HeadLayout,
    slots::Slots,
};
use crate::{
    Buffer, CudaError, Device, View,
    ops::{AttentionF32, Embed, GateF32, GemmF32, LayerKv, QkvHead, RmsNorm, Several},
};

#[derive(Debug)]
struct Layer {
    attention_norm: Buffer<f32>,
    /// [heads + 2 * kv_heads, head_dim, hidden]
    qkv: Buffer<f32>,
    qkv_bias: Option<Buffer<f32>>,
    head_norms: Option<[Buffer<f32>; 2]>,
    /// [hidden, heads, head_dim]
    o: Buffer<f32>,
    mlp_norm: Buffer<f32>,
    /// [gates and then ups, intermediate, hidden]
    gate_up: Buffer<f32>,
    /// [hidden, intermediate]
    down: Buffer<f32>,
}

/// Weights, and what a step keeps between its launches.
#[derive(Debug)]
pub(super) struct Float32 {
    embedding: Buffer<f32>,
    /// `None`: the embedding.
    head: Option<Buffer<f32>>,
    layers: Vec<Layer>,
    normed: Buffer<f32>,
    qkv: Buffer<f32>,
    queries: Buffer<f32>,
    attended: Buffer<f32>,
    both: Buffer<f32>,
    gated: Buffer<f32>,
    last: Buffer<f32>,
}

impl Float32 {
    /// Copies a model to the device, with room for steps of `tokens`.
    pub fn load(
        device: &Device,
        model: &Model,
        dimensions: &Dimensions,
        tokens: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, CudaError> {
        let Dimensions { hidden, intermediate, .. } = *dimensions;
        let loader = Loader { device, model, dimensions };
        let mut layers = Vec::with_capacity(dimensions.layers);
        for layer in 0..model.spec.layers {
            layers.push(loader.layer(layer)?);
            progress(layers.len());
        }
        Ok(Self {
            embedding: loader.vocabulary(WeightId::Embedding)?,
            head: if model.spec.tied_embeddings { None } else { Some(loader.vocabulary(WeightId::Head)?) },
            layers,
            normed: device.allocate(tokens * hidden)?,
            qkv: device.allocate(tokens * dimensions.qkv_width())?,
            queries: device.allocate(tokens * dimensions.query_width())?,
            attended: device.allocate(tokens * dimensions.query_width())?,
            both: device.allocate(tokens * 2 * intermediate)?,
            gated: device.allocate(tokens * intermediate)?,
            last: device.allocate(LOGIT_ROWS * hidden)?,
        })
    }

    /// Embedding and layers.
    pub fn layers(
        &self,
        device: &Device,
        decoder: &Decoder,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
    ) -> Result<(), CudaError> {
        device.embed_f32(Embed {
            hidden: decoder.buffers.hidden.view(),
            table: self.embedding.view(),
            ids: lists.ids,
            slots: lists.token_slots,
            last_tokens: slots.last_tokens.view(),
            next: None,
            tokens: counts.tokens,
            width: decoder.dimensions.hidden,
        })?;
        for (number, layer) in self.layers.iter().enumerate() {
            self.attend(device, decoder, layer, number, lists, counts)?;
            self.feed_forward(device, decoder, layer, counts.tokens)?;
        }
        Ok(())
    }

    fn attend(
        &self,
        device: &Device,
        decoder: &Decoder,
        layer: &Layer,
        number: usize,
        lists: Lists<'_>,
        counts: Counts,
    ) -> Result<(), CudaError> {
        let dimensions = &decoder.dimensions;
        let Dimensions { hidden, heads, kv_heads, head_dim, window, .. } = *dimensions;
        let tokens = counts.tokens;
        let pages = decoder.layer(number).cast();
        let kv = LayerKv { pages, kv_heads, head_dim, page_size: decoder.page_size };
        self.norm(device, decoder, &layer.attention_norm, tokens)?;
        product(device, &self.qkv, &self.normed, &layer.qkv, [tokens, dimensions.qkv_width(), hidden])?;
        device.heads_f32(QkvHead {
            queries: self.queries.view(),
            kv,
            qkv: self.qkv.view(),
            bias: layer.qkv_bias.as_ref().map(Buffer::view),
            norms: layer.head_norms.as_ref().map(|[q, k]| [q.view(), k.view()]),
            cosines: decoder.weights.cosines.view(),
            sines: decoder.weights.sines.view(),
            positions: lists.positions,
            places: lists.places,
            tokens,
            heads,
            norm_width: dimensions.model_head_dim,
            eps: dimensions.eps,
        })?;
        let several = Several { firsts: lists.query_starts, counts: lists.query_counts, most: tokens };
        let kinds = [
            (counts.decodes, lists.decode_tables, None),
            (counts.prefills, lists.prefill_tables, Some(several)),
        ];
        for (sequences, table_starts, several) in kinds.into_iter().filter(|(sequences, ..)| *sequences > 0) {
            device.attention_f32(AttentionF32 {
                out: self.attended.view(),
                queries: self.queries.view(),
                kv,
                tables: lists.tables,
                table_starts,
                positions: lists.positions,
                sequences,
                several,
                heads,
                window,
                scale: dimensions.scale(),
            })?;
        }
        let sizes = [tokens, hidden, dimensions.query_width()];
        add_product(device, &decoder.buffers.hidden, &self.attended, &layer.o, sizes)
    }

    fn feed_forward(
        &self,
        device: &Device,
        decoder: &Decoder,
        layer: &Layer,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let Dimensions { hidden, intermediate, .. } = decoder.dimensions;
        self.norm(device, decoder, &layer.mlp_norm, tokens)?;
        product(device, &self.both, &self.normed, &layer.gate_up, [tokens, 2 * intermediate, hidden])?;
        let (gated, both) = (self.gated.view(), self.both.view());
        device.gate_f32(GateF32 { gated, both, tokens, intermediate })?;
        add_product(device, &decoder.buffers.hidden, &self.gated, &layer.down, [tokens, hidden, intermediate])
    }

    fn norm(
        &self,
        device: &Device,
        decoder: &Decoder,
        weight: &Buffer<f32>,
        count: usize,
    ) -> Result<(), CudaError> {
        let Dimensions { hidden: width, eps, .. } = decoder.dimensions;
        let (out, hidden) = (self.normed.view(), decoder.buffers.hidden.view());
        let weight = weight.view();
        device.norm_f32(RmsNorm { out, hidden, weight, rows: None, scales: None, count, width, eps })
    }

    /// Logits of some rows of the residual stream.
    pub fn logits(
        &self,
        device: &Device,
        decoder: &Decoder,
        rows: View<'_, u32>,
        count: usize,
    ) -> Result<(), CudaError> {
        let Dimensions { hidden: width, eps, .. } = decoder.dimensions;
        device.norm_f32(RmsNorm {
            out: self.last.view(),
            hidden: decoder.buffers.hidden.view(),
            weight: decoder.weights.final_norm.view(),
            rows: Some(rows),
            scales: None,
            count,
            width,
            eps,
        })?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let columns = decoder.dimensions.logit_columns();
        product(device, &decoder.buffers.logits, &self.last, head, [count, columns, width])
    }

    /// Bytes of matrices that a step reads.
    pub fn bytes_per_step(&self) -> usize {
        let matrices = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        matrices.chain([head]).map(|matrix| matrix.view().bytes()).sum()
    }
}

fn product(
    device: &Device,
    out: &Buffer<f32>,
    x: &Buffer<f32>,
    w: &Buffer<f32>,
    [m, n, k]: [usize; 3],
) -> Result<(), CudaError> {
    device.gemm_f32(GemmF32 { out: out.view(), x: x.view(), w: w.view(), m, n, k, add: false })
}

fn add_product(
    device: &Device,
    sum: &Buffer<f32>,
    x: &Buffer<f32>,
    w: &Buffer<f32>,
    [m, n, k]: [usize; 3],
) -> Result<(), CudaError> {
    device.gemm_f32(GemmF32 { out: sum.view(), x: x.view(), w: w.view(), m, n, k, add: true })
}

struct Loader<'a> {
    device: &'a Device,
    model: &'a Model,
    dimensions: &'a Dimensions,
}

impl Loader<'_> {
    fn layer(&self, layer: u32) -> Result<Layer, CudaError> {
        use LayerWeight::{
            AttentionNorm, Down, Gate, K, KBias, KNorm, MlpNorm, O, Q, QBias, QNorm, Up, V, VBias,
        };
        let id = |weight| WeightId::Layer(layer, weight);
        let Dimensions { model_head_dim, head_dim, hidden, .. } = *self.dimensions;
        let spec = &self.model.spec;
        let rotated = HeadLayout::rotated(model_head_dim, head_dim, &spec.rope);
        let plain = HeadLayout::plain(model_head_dim, head_dim);
        let heads = |weights: [LayerWeight; 3], unit: usize| -> Result<_, CudaError> {
            let mut all = Vec::new();
            for (weight, layout) in weights.into_iter().zip([&rotated, &rotated, &plain]) {
                all.extend(layout.spread(&self.floats(id(weight))?, unit));
            }
            self.device.upload(&all)
        };
        let head_norm = |weight| -> Result<_, CudaError> {
            self.device.upload(&rotated.spread(&self.floats(id(weight))?, 1))
        };
        Ok(Layer {
            attention_norm: self.stacked(&[id(AttentionNorm)])?,
            qkv: heads([Q, K, V], hidden)?,
            qkv_bias: if spec.qkv_bias { Some(heads([QBias, KBias, VBias], 1)?) } else { None },
            head_norms: if spec.qk_norm { Some([head_norm(QNorm)?, head_norm(KNorm)?]) } else { None },
            o: self.device.upload(&plain.spread(&self.floats(id(O))?, 1))?,
            mlp_norm: self.stacked(&[id(MlpNorm)])?,
            gate_up: self.stacked(&[id(Gate), id(Up)])?,
            down: self.stacked(&[id(Down)])?,
        })
    }

    /// A row for each token, and rows of zeros behind them.
    fn vocabulary(&self, id: WeightId) -> Result<Buffer<f32>, CudaError> {
        let mut rows = self.floats(id)?;
        rows.resize(self.dimensions.logit_columns() * self.dimensions.hidden, 0.0);
        self.device.upload(&rows)
    }

    /// Matrices one below the other.
    fn stacked(&self, ids: &[WeightId]) -> Result<Buffer<f32>, CudaError> {
        let parts = ids.iter().map(|&id| self.floats(id)).collect::<Result<Vec<_>, _>>()?;
        self.device.upload(&parts.concat())
    }

    fn floats(&self, id: WeightId) -> Result<Vec<f32>, CudaError> {
        Ok(self.model.weights.get(id)?.to_f32())
    }
}
