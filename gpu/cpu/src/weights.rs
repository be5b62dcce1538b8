//! The weights of a model, packed for the kernels.

use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use models::{DType, DecoderSpec, LayerWeight, Model, WeightId};

use crate::{ActsFormat, CpuError, Isa, Linear, Precision};

/// A decoder's weights.
#[derive(Debug)]
pub(crate) struct Weights {
    pub embedding: Linear,
    /// `None`: the embedding.
    head: Option<Linear>,
    pub final_norm: Vec<f32>,
    pub layers: Vec<Layer>,
}

/// Weights of one layer. Biases and norms that the model has not got are empty.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    /// Query, key and value projections, stacked.
    pub qkv: Linear,
    pub q_bias: Vec<f32>,
    pub k_bias: Vec<f32>,
    pub v_bias: Vec<f32>,
    pub q_norm: Vec<f32>,
    pub k_norm: Vec<f32>,
    pub output: Linear,
    pub mlp_norm: Vec<f32>,
    /// Gate and up projections, stacked.
    pub gate_up: Linear,
    pub down: Linear,
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Layers, embedding and head that are packed, and how many there are.
    pub done: usize,
    pub total: usize,
}

impl Weights {
    /// Packs all weights of `model` on `threads` threads.
    pub fn load(
        model: &Model,
        isa: Isa,
        precision: Precision,
        threads: usize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, CpuError> {
        let source = Source { model, isa, precision };
        let spec = &model.spec;
        let layers = spec.layers as usize;
        let ends = if spec.tied_embeddings { 1 } else { 2 };
        let total = layers + ends;
        let mut packed: Vec<Option<Layer>> = (0..layers).map(|_| None).collect();
        let mut matrices = [None, None];
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(total);
            for _ in 0..threads.clamp(1, total) {
                let (sender, next, source) = (sender.clone(), &next, &source);
                scope.spawn(move || {
                    // The embedding first: it is the largest piece.
                    while let index = next.fetch_add(1, Ordering::Relaxed)
                        && index < total
                    {
                        let piece = source.piece(index, ends);
                        if sender.send((index, piece)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (done, (index, piece)) in receiver.iter().enumerate() {
                match piece? {
                    Piece::Matrix(matrix) => matrices[index] = Some(matrix),
                    Piece::Layer(layer) => packed[index - ends] = Some(*layer),
                }
                progress(LoadProgress { done: done + 1, total });
            }
            Ok::<(), CpuError>(())
        })?;
        let [embedding, head] = matrices;
        let missing = || CpuError::Shape("a weight that was not packed".into());
        Ok(Self {
            embedding: embedding.ok_or_else(missing)?,
            head,
            final_norm: source.vector(WeightId::FinalNorm)?,
            layers: packed.into_iter().collect::<Option<_>>().ok_or_else(missing)?,
        })
    }

    pub fn head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all packed matrices.
    pub fn bytes(&self) -> u64 {
        let separate = if self.head.is_some() { self.embedding.bytes() } else { 0 };
        self.bytes_read() + separate as u64
    }

    /// Bytes that a step reads when it computes logits.
    pub fn bytes_read(&self) -> u64 {
        let layers = self.layers.iter().flat_map(Layer::matrices).map(Linear::bytes).sum::<usize>();
        (layers + self.head().bytes()) as u64
    }

    /// Forms of the activations that meet: queries, keys, values, gate, up and head; output; down.
    pub fn acts_formats(&self) -> [ActsFormat; 3] {
        let union = |of: fn(&Layer) -> ActsFormat| {
            self.layers.iter().map(of).fold(ActsFormat::default(), ActsFormat::union)
        };
        [
            union(|layer| layer.qkv.acts_format().union(layer.gate_up.acts_format()))
                .union(self.head().acts_format()),
            union(|layer| layer.output.acts_format()),
            union(|layer| layer.down.acts_format()),
        ]
    }
}

impl Layer {
    fn matrices(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }
}

/// Bytes that the packed weights of a model take, about: packing pads rows to tiles.
pub(crate) fn estimate(model: &Model, precision: Precision) -> u64 {
    match precision {
        // FP8 is packed as BF16
        Precision::Packed => model.weights.bytes() + model.weights.bytes_of(DType::F8E4M3),
        Precision::F32 => parameters(&model.spec) * size_of::<f32>() as u64,
    }
}

fn parameters(spec: &DecoderSpec) -> u64 {
    let hidden = u64::from(spec.hidden_size);
    let attention = u64::from(spec.query_width()) * 2 + u64::from(spec.kv_width()) * 2;
    let layer = hidden * (attention + 3 * u64::from(spec.intermediate_size));
    let ends = if spec.tied_embeddings { 1 } else { 2 };
    u64::from(spec.layers) * layer + ends * u64::from(spec.vocab_size) * hidden
}

enum Piece {
    Matrix(Linear),
    Layer(Box<Layer>),
}

struct Source<'a> {
    model: &'a Model,
    isa: Isa,
    precision: Precision,
}

impl Source<'_> {
    /// Piece 0 is the embedding, 1 the head if it is separate, then come the layers.
    fn piece(&self, index: usize, ends: usize) -> Result<Piece, CpuError> {
        Ok(match index {
            0 => Piece::Matrix(self.linear(&[WeightId::Embedding])?),
            1 if ends == 2 => Piece::Matrix(self.linear(&[WeightId::Head])?),
            _ => Piece::Layer(Box::new(self.layer((index - ends) as u32)?)),
        })
    }

    fn layer(&self, index: u32) -> Result<Layer, CpuError> {
        use LayerWeight::{
            AttentionNorm, Down, Gate, K, KBias, KNorm, MlpNorm, O, Q, QBias, QNorm, Up, V, VBias,
        };
        let spec = &self.model.spec;
        let id = |weight| WeightId::Layer(index, weight);
        let optional = |has: bool, weight| if has { self.vector(id(weight)) } else { Ok(Vec::new()) };
        Ok(Layer {
            attention_norm: self.vector(id(AttentionNorm))?,
            qkv: self.linear(&[id(Q), id(K), id(V)])?,
            q_bias: optional(spec.qkv_bias, QBias)?,
            k_bias: optional(spec.qkv_bias, KBias)?,
            v_bias: optional(spec.qkv_bias, VBias)?,
            q_norm: optional(spec.qk_norm, QNorm)?,
            k_norm: optional(spec.qk_norm, KNorm)?,
            output: self.linear(&[id(O)])?,
            mlp_norm: self.vector(id(MlpNorm))?,
            gate_up: self.linear(&[id(Gate), id(Up)])?,
            down: self.linear(&[id(Down)])?,
        })
    }

    fn linear(&self, ids: &[WeightId]) -> Result<Linear, CpuError> {
        let part = |&id| Ok(self.model.weights.get(id)?.without_scales());
        let parts = ids.iter().map(part).collect::<Result<Vec<_>, CpuError>>()?;
        Ok(Linear::pack(&parts, self.isa, self.precision)?)
    }

    fn vector(&self, id: WeightId) -> Result<Vec<f32>, CpuError> {
        Ok(self.model.weights.get(id)?.to_f32())
    }
}
