use half::bf16;
use models::{DType, DecoderSpec, LayerWeight, Matrix, Model, RopeSpec, WeightId, rope_frequencies};

use super::{dimensions::Dimensions, head_layout::HeadLayout};
use crate::{Buffer, CudaError, Device, ops::FillBf16};

/// The weights of one layer, as the kernels want them.
#[derive(Debug)]
pub(super) struct Layer {
    /// [hidden]
    pub attention_norm: Buffer<f32>,
    /// [heads + 2 * kv_heads, head_dim, hidden]: queries, keys, values
    pub qkv: Buffer<bf16>,
    /// [heads + 2 * kv_heads, head_dim]
    pub qkv_bias: Option<Buffer<bf16>>,
    /// Of queries and keys, [head_dim].
    pub head_norms: Option<[Buffer<f32>; 2]>,
    /// [hidden, heads, head_dim]
    pub o: Buffer<bf16>,
    /// [hidden]
    pub mlp_norm: Buffer<f32>,
    /// [intermediate, gate and up, hidden]
    pub gate_up: Buffer<bf16>,
    /// [hidden, intermediate]
    pub down: Buffer<bf16>,
}

/// A decoder on the device.
#[derive(Debug)]
pub(super) struct Weights {
    /// [vocab, hidden]
    pub embedding: Buffer<bf16>,
    /// [vocab, hidden]; `None`: the embedding.
    pub head: Option<Buffer<bf16>>,
    /// [hidden]
    pub final_norm: Buffer<f32>,
    pub layers: Vec<Layer>,
    /// Rotary tables, [positions, head_dim / 2].
    pub cosines: Buffer<f32>,
    pub sines: Buffer<f32>,
}

impl Weights {
    /// Copies a model to the device. `progress` hears the number of layers done.
    pub fn load(
        device: &Device,
        model: &Model,
        dimensions: &Dimensions,
        context_length: u32,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, CudaError> {
        let loader = Loader { device, model, dimensions };
        let mut layers = Vec::with_capacity(dimensions.layers);
        for layer in 0..model.spec.layers {
            layers.push(loader.layer(layer)?);
            progress(layers.len());
        }
        let (cosines, sines) = rotary_tables(&model.spec.rope, dimensions.head_dim, context_length);
        Ok(Self {
            embedding: loader.matrix(WeightId::Embedding)?,
            head: if model.spec.tied_embeddings { None } else { Some(loader.matrix(WeightId::Head)?) },
            final_norm: loader.vector(WeightId::FinalNorm)?,
            layers,
            cosines: device.upload(&cosines)?,
            sines: device.upload(&sines)?,
        })
    }

    /// Random weights of a decoder's shape, for timing: no file is read.
    pub fn dummy(
        device: &Device,
        spec: &DecoderSpec,
        dimensions: &Dimensions,
        context_length: u32,
    ) -> Result<Self, CudaError> {
        let Dimensions { hidden, vocab, intermediate, head_dim, .. } = *dimensions;
        let matrix = |rows: usize, columns: usize| -> Result<_, CudaError> {
            let buffer = device.allocate(rows * columns)?;
            let scale = 1.7 / (columns as f32).sqrt();
            device.fill_bf16(FillBf16 { out: buffer.view(), seed: rows as u32, scale })?;
            Ok(buffer)
        };
        let ones = |len: usize| device.upload(&vec![1.0f32; len]);
        let mut layers = Vec::with_capacity(dimensions.layers);
        for _ in 0..dimensions.layers {
            layers.push(Layer {
                attention_norm: ones(hidden)?,
                qkv: matrix(dimensions.qkv_width(), hidden)?,
                qkv_bias: if spec.qkv_bias { Some(matrix(1, dimensions.qkv_width())?) } else { None },
                head_norms: if spec.qk_norm { Some([ones(head_dim)?, ones(head_dim)?]) } else { None },
                o: matrix(hidden, dimensions.query_width())?,
                mlp_norm: ones(hidden)?,
                gate_up: matrix(2 * intermediate, hidden)?,
                down: matrix(hidden, intermediate)?,
            });
        }
        let (cosines, sines) = rotary_tables(&spec.rope, head_dim, context_length);
        Ok(Self {
            embedding: matrix(vocab, hidden)?,
            head: if spec.tied_embeddings { None } else { Some(matrix(vocab, hidden)?) },
            final_norm: ones(hidden)?,
            layers,
            cosines: device.upload(&cosines)?,
            sines: device.upload(&sines)?,
        })
    }
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
        let rotated = HeadLayout::rotated(model_head_dim, head_dim, &self.model.spec.rope);
        let plain = HeadLayout::plain(model_head_dim, head_dim);

        let mut qkv = Vec::new();
        for (weight, layout) in [(Q, &rotated), (K, &rotated), (V, &plain)] {
            qkv.extend(layout.spread(&self.halves(id(weight))?, hidden));
        }
        let qkv_bias = if self.model.spec.qkv_bias {
            let mut bias = Vec::new();
            for (weight, layout) in [(QBias, &rotated), (KBias, &rotated), (VBias, &plain)] {
                bias.extend(layout.spread(&self.halves(id(weight))?, 1));
            }
            Some(self.device.upload(&bias)?)
        } else {
            None
        };
        let head_norms = if self.model.spec.qk_norm {
            let norm = |weight| -> Result<_, CudaError> {
                self.device.upload(&rotated.spread(&self.floats(id(weight))?, 1))
            };
            Some([norm(QNorm)?, norm(KNorm)?])
        } else {
            None
        };
        let o = if model_head_dim == head_dim {
            self.matrix(id(O))?
        } else {
            self.device.upload(&plain.spread(&self.halves(id(O))?, 1))?
        };
        let (gate, up) = (self.halves(id(Gate))?, self.halves(id(Up))?);
        let mut gate_up = Vec::with_capacity(2 * gate.len());
        for (gate, up) in gate.chunks_exact(hidden).zip(up.chunks_exact(hidden)) {
            gate_up.extend_from_slice(gate);
            gate_up.extend_from_slice(up);
        }
        Ok(Layer {
            attention_norm: self.vector(id(AttentionNorm))?,
            qkv: self.device.upload(&qkv)?,
            qkv_bias,
            head_norms,
            o,
            mlp_norm: self.vector(id(MlpNorm))?,
            gate_up: self.device.upload(&gate_up)?,
            down: self.matrix(id(Down))?,
        })
    }

    fn get(&self, id: WeightId) -> Result<Matrix<'_>, CudaError> {
        Ok(self.model.weights.get(id)?)
    }

    /// A matrix in its own layout, straight from its file if that holds bf16.
    fn matrix(&self, id: WeightId) -> Result<Buffer<bf16>, CudaError> {
        let matrix = self.get(id)?;
        if matrix.dtype != DType::BF16 {
            return self.device.upload(&halves(&matrix));
        }
        let buffer = self.device.allocate::<bf16>(matrix.rows * matrix.cols)?;
        self.device.write(buffer.view().cast::<u8>(), &matrix.data)?;
        Ok(buffer)
    }

    fn halves(&self, id: WeightId) -> Result<Vec<bf16>, CudaError> {
        Ok(halves(&self.get(id)?))
    }

    fn floats(&self, id: WeightId) -> Result<Vec<f32>, CudaError> {
        Ok(self.get(id)?.to_f32())
    }

    fn vector(&self, id: WeightId) -> Result<Buffer<f32>, CudaError> {
        self.device.upload(&self.floats(id)?)
    }
}

fn halves(matrix: &Matrix<'_>) -> Vec<bf16> {
    if matrix.dtype == DType::BF16 {
        return matrix.data.chunks_exact(2).map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]])).collect();
    }
    let mut row = vec![0.0; matrix.cols];
    let mut all = Vec::with_capacity(matrix.rows * matrix.cols);
    for number in 0..matrix.rows {
        matrix.row_to_f32(number, &mut row);
        all.extend(row.iter().map(|&value| bf16::from_f32(value)));
    }
    all
}

/// Cosines and sines for heads of `width`; elements that do not turn have angle zero.
fn rotary_tables(rope: &RopeSpec, width: usize, positions: u32) -> (Vec<f32>, Vec<f32>) {
    let table = rope_frequencies(rope, positions);
    let half = width / 2;
    let mut cosines = vec![1.0; positions as usize * half];
    let mut sines = vec![0.0; positions as usize * half];
    for position in 0..positions as usize {
        for (pair, frequency) in table.inverse_frequencies.iter().enumerate() {
            let angle = position as f32 * frequency;
            cosines[position * half + pair] = angle.cos() * table.attention_factor;
            sines[position * half + pair] = angle.sin() * table.attention_factor;
        }
    }
    (cosines, sines)
}
