use half::bf16;
use models::{DType, DecoderSpec, LayerWeight, Matrix, Model, RopeSpec, WeightId, rope_frequencies};

use super::{
    dimensions::Dimensions,
    head_layout::HeadLayout,
    matrix::{LayerMatrix, Parts},
    upload::{Rows, Uploader},
};
use crate::{Buffer, CudaError, Device, WeightFormat, ops::FillBf16};

/// The weights of one layer, as the kernels want them.
#[derive(Debug)]
pub(super) struct Layer {
    /// [hidden]
    pub attention_norm: Buffer<f32>,
    /// [heads + 2 * kv_heads, head_dim, hidden]: queries, keys, values
    pub qkv: LayerMatrix,
    /// [heads + 2 * kv_heads, head_dim]
    pub qkv_bias: Option<Buffer<bf16>>,
    /// Of queries and keys, [head_dim].
    pub head_norms: Option<[Buffer<f32>; 2]>,
    /// [hidden, heads, head_dim]
    pub o: LayerMatrix,
    /// [hidden]
    pub mlp_norm: Buffer<f32>,
    /// [intermediate, gate and up, hidden]
    pub gate_up: LayerMatrix,
    /// [hidden, intermediate]
    pub down: LayerMatrix,
}

impl Layer {
    pub fn matrices(&self) -> [&LayerMatrix; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}

/// A decoder on the device.
#[derive(Debug)]
pub(super) struct Weights {
    /// [logit columns, hidden]
    pub embedding: Buffer<bf16>,
    /// [logit columns, hidden]; `None`: the embedding.
    pub head: Option<Buffer<bf16>>,
    /// [hidden]
    pub final_norm: Buffer<f32>,
    pub layers: Vec<Layer>,
    /// Rotary tables, [positions, head_dim / 2].
    pub cosines: Buffer<f32>,
    pub sines: Buffer<f32>,
}

impl Weights {
    /// Copies a model to the device, matrices of layers in `format`. `progress` hears the number of layers done.
    pub fn load(
        device: &Device,
        model: &Model,
        dimensions: &Dimensions,
        context_length: u32,
        format: WeightFormat,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, CudaError> {
        let uploader = Uploader::new(device)?;
        let loader = Loader { device, model, dimensions, uploader, format };
        let mut layers = Vec::with_capacity(dimensions.layers);
        for layer in 0..model.spec.layers {
            layers.push(loader.layer(layer)?);
            progress(layers.len());
        }
        let (cosines, sines) = rotary_tables(&model.spec.rope, dimensions.head_dim, context_length);
        Ok(Self {
            embedding: loader.vocabulary(WeightId::Embedding)?,
            head: if model.spec.tied_embeddings { None } else { Some(loader.vocabulary(WeightId::Head)?) },
            final_norm: loader.vector(WeightId::FinalNorm)?,
            layers,
            cosines: device.upload(&cosines)?,
            sines: device.upload(&sines)?,
        })
    }

    /// What decoders in f32 have of it, whose matrices are elsewhere.
    pub fn without_matrices(
        device: &Device,
        model: &Model,
        dimensions: &Dimensions,
        context_length: u32,
    ) -> Result<Self, CudaError> {
        let (cosines, sines) = rotary_tables(&model.spec.rope, dimensions.head_dim, context_length);
        Ok(Self {
            embedding: device.allocate(0)?,
            head: None,
            final_norm: device.upload(&model.weights.get(WeightId::FinalNorm)?.to_f32())?,
            layers: Vec::new(),
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
        format: WeightFormat,
    ) -> Result<Self, CudaError> {
        let Dimensions { hidden, intermediate, head_dim, .. } = *dimensions;
        let vocab = dimensions.logit_columns();
        let matrix = |rows: usize, columns: usize| -> Result<_, CudaError> {
            let buffer = device.allocate(rows * columns)?;
            let scale = 1.7 / (columns as f32).sqrt();
            device.fill_bf16(FillBf16 { out: buffer.view(), seed: rows as u32, scale })?;
            Ok(buffer)
        };
        let layer_matrix = |n: usize, k: usize| LayerMatrix::new(device, matrix(n, k)?, [n, k], format);
        let ones = |len: usize| device.upload(&vec![1.0f32; len]);
        let mut layers = Vec::with_capacity(dimensions.layers);
        for _ in 0..dimensions.layers {
            layers.push(Layer {
                attention_norm: ones(hidden)?,
                qkv: layer_matrix(dimensions.qkv_width(), hidden)?,
                qkv_bias: if spec.qkv_bias { Some(matrix(1, dimensions.qkv_width())?) } else { None },
                head_norms: if spec.qk_norm { Some([ones(head_dim)?, ones(head_dim)?]) } else { None },
                o: layer_matrix(hidden, dimensions.query_width())?,
                mlp_norm: ones(hidden)?,
                gate_up: layer_matrix(2 * intermediate, hidden)?,
                down: layer_matrix(hidden, intermediate)?,
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

impl Weights {
    /// The matrix that makes the logits.
    pub fn head(&self) -> &Buffer<bf16> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of matrices that a step reads.
    pub fn bytes_per_step(&self) -> usize {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        layers.map(LayerMatrix::bytes).sum::<usize>() + self.head().view().bytes()
    }

    /// Elements of the largest matrix in FP8, unpacked.
    pub fn room(&self) -> usize {
        self.layers.iter().flat_map(Layer::matrices).map(LayerMatrix::room).max().unwrap_or(0)
    }

    /// Of the element types of the layers' matrices.
    pub fn name(&self) -> &'static str {
        let all_fp8 = self.layers.iter().flat_map(Layer::matrices).all(LayerMatrix::is_fp8);
        match (self.holds_fp8(), all_fp8) {
            (false, _) => "bf16",
            (true, false) => "bf16+fp8",
            (true, true) => "fp8",
        }
    }

    pub fn holds_fp8(&self) -> bool {
        self.layers.iter().flat_map(Layer::matrices).any(LayerMatrix::is_fp8)
    }
}

struct Loader<'a> {
    device: &'a Device,
    model: &'a Model,
    dimensions: &'a Dimensions,
    uploader: Uploader,
    format: WeightFormat,
}

impl Loader<'_> {
    fn layer(&self, layer: u32) -> Result<Layer, CudaError> {
        use LayerWeight::{AttentionNorm, KBias, KNorm, MlpNorm, QBias, QNorm, VBias};
        let id = |weight| WeightId::Layer(layer, weight);
        let Dimensions { model_head_dim, head_dim, .. } = *self.dimensions;
        let rotated = HeadLayout::rotated(model_head_dim, head_dim, &self.model.spec.rope);
        let plain = HeadLayout::plain(model_head_dim, head_dim);

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
        Ok(Layer {
            attention_norm: self.vector(id(AttentionNorm))?,
            qkv: self.qkv(layer, &rotated, &plain)?,
            qkv_bias,
            head_norms,
            o: self.o(layer, &plain)?,
            mlp_norm: self.vector(id(MlpNorm))?,
            gate_up: self.gate_up(layer)?,
            down: self.down(layer)?,
        })
    }

    fn qkv(&self, layer: u32, rotated: &HeadLayout, plain: &HeadLayout) -> Result<LayerMatrix, CudaError> {
        use LayerWeight::{K, Q, V};
        if !self.dimensions.pads_heads()
            && let Some(matrix) = self.codes(layer, &[Q, K, V], Parts::Stacked)?
        {
            return Ok(matrix);
        }
        let size = [self.dimensions.qkv_width(), self.dimensions.hidden];
        if rotated == plain {
            let ids = [Q, K, V].map(|weight| WeightId::Layer(layer, weight));
            return self.formatted(self.stacked(&ids)?, size);
        }
        let mut rows = Vec::new();
        for (weight, layout) in [(Q, rotated), (K, rotated), (V, plain)] {
            let halves = self.halves(WeightId::Layer(layer, weight))?;
            rows.extend(layout.spread(&halves, self.dimensions.hidden));
        }
        self.formatted(self.device.upload(&rows)?, size)
    }

    fn o(&self, layer: u32, plain: &HeadLayout) -> Result<LayerMatrix, CudaError> {
        let id = WeightId::Layer(layer, LayerWeight::O);
        let size = [self.dimensions.hidden, self.dimensions.query_width()];
        if self.dimensions.pads_heads() {
            return self.formatted(self.device.upload(&plain.spread(&self.halves(id)?, 1))?, size);
        }
        match self.codes(layer, &[LayerWeight::O], Parts::Stacked)? {
            Some(matrix) => Ok(matrix),
            None => self.formatted(self.matrix(id)?, size),
        }
    }

    fn gate_up(&self, layer: u32) -> Result<LayerMatrix, CudaError> {
        use LayerWeight::{Gate, Up};
        if let Some(matrix) = self.codes(layer, &[Gate, Up], Parts::Interleaved)? {
            return Ok(matrix);
        }
        let Dimensions { hidden, intermediate, .. } = *self.dimensions;
        let ids = [Gate, Up].map(|weight| WeightId::Layer(layer, weight));
        self.formatted(self.interleaved(ids)?, [2 * intermediate, hidden])
    }

    fn down(&self, layer: u32) -> Result<LayerMatrix, CudaError> {
        let Dimensions { hidden, intermediate, .. } = *self.dimensions;
        match self.codes(layer, &[LayerWeight::Down], Parts::Stacked)? {
            Some(matrix) => Ok(matrix),
            None => {
                let elements = self.matrix(WeightId::Layer(layer, LayerWeight::Down))?;
                self.formatted(elements, [hidden, intermediate])
            }
        }
    }

    /// A matrix whose parts are all stored in FP8.
    fn codes(
        &self,
        layer: u32,
        weights: &[LayerWeight],
        order: Parts,
    ) -> Result<Option<LayerMatrix>, CudaError> {
        let part = |&weight| {
            let id = WeightId::Layer(layer, weight);
            Ok((id, self.get(id)?))
        };
        let parts = weights.iter().map(part).collect::<Result<Vec<_>, CudaError>>()?;
        LayerMatrix::of_codes(self.device, &parts, order)
    }

    fn formatted(&self, elements: Buffer<bf16>, size: [usize; 2]) -> Result<LayerMatrix, CudaError> {
        LayerMatrix::new(self.device, elements, size, self.format)
    }

    fn get(&self, id: WeightId) -> Result<Matrix<'_>, CudaError> {
        Ok(self.model.weights.get(id)?)
    }

    fn matrix(&self, id: WeightId) -> Result<Buffer<bf16>, CudaError> {
        self.stacked(&[id])
    }

    /// A row for each token, and rows of zeros behind them.
    fn vocabulary(&self, id: WeightId) -> Result<Buffer<bf16>, CudaError> {
        let Dimensions { vocab, hidden, .. } = *self.dimensions;
        let buffer = self.device.allocate(self.dimensions.logit_columns() * hidden)?;
        self.uploader.copy(self.device, &self.get(id)?, buffer.view(), Rows { first: 0, step: 1 })?;
        let padding = buffer.slice(vocab * hidden..);
        if !padding.is_empty() {
            self.device.fill_bytes(padding, 0)?;
        }
        Ok(buffer)
    }

    /// Matrices one below the other.
    fn stacked(&self, ids: &[WeightId]) -> Result<Buffer<bf16>, CudaError> {
        let parts = ids.iter().map(|&id| self.get(id)).collect::<Result<Vec<_>, _>>()?;
        let buffer = self.device.allocate(parts.iter().map(|part| part.rows * part.cols).sum())?;
        let mut first = 0;
        for part in &parts {
            self.uploader.copy(self.device, part, buffer.view(), Rows { first, step: 1 })?;
            first += part.rows;
        }
        Ok(buffer)
    }

    /// Two matrices, row by row in turn.
    fn interleaved(&self, ids: [WeightId; 2]) -> Result<Buffer<bf16>, CudaError> {
        let [even, odd] = [self.get(ids[0])?, self.get(ids[1])?];
        let buffer = self.device.allocate(even.rows * even.cols + odd.rows * odd.cols)?;
        for (first, part) in [even, odd].iter().enumerate() {
            self.uploader.copy(self.device, part, buffer.view(), Rows { first, step: 2 })?;
        }
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
