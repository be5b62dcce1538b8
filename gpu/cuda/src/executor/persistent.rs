use half::bf16;

use super::{
    block::Lists, decoder::Decoder, dimensions::Dimensions, matrix::LayerMatrix, plan::Plan, slots::Slots,
    weights::Weights,
};
use crate::{
    Buffer, CudaError, Device, View,
    ops::{KvPages, KvView, PersistentLayer, PersistentShape, PersistentState, PersistentStep},
};

/// Bytes of weights up to which a step waits for blocks and launches more than for memory.
pub(super) const MOST_WEIGHT_BYTES: usize = 2 << 30;
/// Attention tiles of one key head, a block, from which on a kernel of its own is faster.
const MOST_TILES_PER_BLOCK: usize = 16;

/// Decode steps of few rows as one kernel from the embedding to the last layer. Its bits are those of the other kernels,
/// so that a step may take either way.
#[derive(Debug)]
pub(super) struct Persistent {
    shape: PersistentShape,
    state: PersistentState,
    /// [layers, before attention and before the gated product, hidden]
    norms: Buffer<f32>,
    max_rows: usize,
}

impl Persistent {
    /// With keys and values in bf16. `None`: a model that is faster without, or whose weights are not all bf16.
    pub fn new(
        device: &Device,
        dimensions: &Dimensions,
        weights: &Weights,
        kv: View<'_, bf16>,
    ) -> Result<Option<Self>, CudaError> {
        let shape = PersistentShape {
            layers: dimensions.layers,
            width: dimensions.hidden,
            heads: dimensions.heads,
            kv_heads: dimensions.kv_heads,
            head_dim: dimensions.head_dim,
            norm_width: dimensions.model_head_dim,
            intermediate: dimensions.intermediate,
            window: dimensions.window,
            eps: dimensions.eps,
            scale: dimensions.scale(),
        };
        let multiprocessors = device.info().multiprocessors as usize;
        let max_rows = shape.max_rows(multiprocessors);
        if max_rows == 0 || weights.bytes_per_step() > MOST_WEIGHT_BYTES {
            return Ok(None);
        }
        if !device.holds_persistent(&shape)? {
            tracing::warn!(
                "not all blocks of a persistent step have room at once: steps are launch after launch"
            );
            return Ok(None);
        }
        let layer_len = kv.len() / dimensions.layers;
        let mut norms = Vec::with_capacity(2 * dimensions.layers * dimensions.hidden);
        let mut layers = Vec::with_capacity(dimensions.layers);
        for (number, layer) in weights.layers.iter().enumerate() {
            norms.extend(device.read(layer.attention_norm.view())?);
            norms.extend(device.read(layer.mlp_norm.view())?);
            let (
                LayerMatrix::Bf16(qkv),
                LayerMatrix::Bf16(o),
                LayerMatrix::Bf16(gate_up),
                LayerMatrix::Bf16(down),
            ) = (&layer.qkv, &layer.o, &layer.gate_up, &layer.down)
            else {
                return Ok(None);
            };
            layers.push(PersistentLayer {
                qkv: qkv.view(),
                o: o.view(),
                gate_up: gate_up.view(),
                down: down.view(),
                qkv_bias: layer.qkv_bias.as_ref().map(Buffer::view),
                head_norms: layer.head_norms.as_ref().map(|[q, k]| [q.view(), k.view()]),
                pages: kv.slice(number * layer_len..(number + 1) * layer_len),
            });
        }
        let max_tiles = MOST_TILES_PER_BLOCK * multiprocessors / dimensions.kv_heads;
        let state = PersistentState::new(device, &shape, &layers, max_tiles)?;
        // steps are filled up to captured ones, which are powers of two
        Ok(Some(Self { shape, state, norms: device.upload(&norms)?, max_rows: 1 << max_rows.ilog2() }))
    }

    /// Whether a step may be this kernel.
    pub fn takes(&self, plan: &Plan) -> bool {
        plan.is_plain_decode() && plan.counts.tokens <= self.max_rows && plan.tiles <= self.state.max_tiles()
    }

    /// Most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Before each step that is this kernel, replayed or not.
    pub fn begin_step(&mut self, device: &Device) -> Result<(), CudaError> {
        self.state.begin_step(device)
    }

    /// Starts the kernel.
    pub fn run(
        &self,
        device: &Device,
        decoder: &Decoder,
        slots: &Slots,
        lists: Lists<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let Decoder { weights, buffers, .. } = decoder;
        device.persistent_step(PersistentStep {
            shape: self.shape,
            state: &self.state,
            hidden: buffers.hidden.view(),
            embedding: weights.embedding.view(),
            norms: self.norms.view(),
            cosines: weights.cosines.view(),
            sines: weights.sines.view(),
            kv: KvPages { pages: KvView::Bf16(decoder.kv.view().cast()), ..decoder.kv_pages(0) },
            ids: lists.ids,
            slots: lists.token_slots,
            last_tokens: slots.last_tokens.view(),
            positions: lists.positions,
            places: lists.places,
            tables: lists.tables,
            table_starts: lists.decode_tables,
            contexts: lists.decode_contexts,
            tile_starts: lists.tile_starts,
            rows,
        })
    }
}
