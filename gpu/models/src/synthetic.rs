//! Random checkpoints, for tests, benchmarks and runs on machines that have no model.

mod config;
mod fp8;
mod random;
mod tokenizer;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use formats::{DType, fp8::SCALE_BLOCK};
use half::{bf16, f16};
use serde_json::{Map, json};

use crate::{DecoderSpec, LayerWeight, ModelError, RopeScaling, RopeSpec, WeightId, weights};

/// Tokens of the byte-level tokenizer that [`write_toy`] and [`write_random_checkpoint`] put beside the weights.
pub use tokenizer::VOCAB_SIZE as TOKENIZER_VOCAB_SIZE;

const TOY_SEED: u64 = 1;

/// Writes a Hugging Face folder of random weights: config.json, model.safetensors and, where the vocabulary has room
/// for it, a byte-level tokenizer with a ChatML template. The same arguments give the same bytes.
///
/// With F8E4M3, the matrices of layers are FP8 with scales for blocks of 128 x 128 elements, all else is BF16.
///
/// Weights are scaled so that attention is sharp and logits are spread out, as in a trained model.
///
/// # Errors
/// [`ModelError::Synthetic`] if no known architecture has this spec or `dtype` is not F32, F16, BF16 or F8E4M3;
/// [`ModelError::Write`] if writing fails.
pub fn write_random_checkpoint(
    dir: &Path,
    spec: &DecoderSpec,
    dtype: DType,
    seed: u64,
) -> Result<(), ModelError> {
    let config = config::config_json(spec, dtype)?;
    let failed = |source| ModelError::Write { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    write_json(&dir.join("config.json"), &config).map_err(failed)?;
    if spec.vocab_size >= tokenizer::VOCAB_SIZE {
        for (name, content) in tokenizer::files() {
            write_json(&dir.join(name), &content).map_err(failed)?;
        }
    }
    write_weights(&dir.join("model.safetensors"), spec, dtype, seed).map_err(failed)
}

/// Writes a complete toy model, always the same, under 1 MB: two layers, grouped queries, a byte-level BPE
/// tokenizer and a ChatML template. It answers with noise.
///
/// # Errors
/// [`ModelError::Write`] if writing fails.
pub fn write_toy(dir: &Path) -> Result<(), ModelError> {
    write_random_checkpoint(dir, &toy_spec(), DType::F32, TOY_SEED)
}

/// What [`write_toy`] writes.
pub fn toy_spec() -> DecoderSpec {
    DecoderSpec {
        vocab_size: tokenizer::VOCAB_SIZE,
        hidden_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate_size: 128,
        norm_eps: 1e-5,
        rope: RopeSpec { theta: 10_000.0, dim: 16, scaling: RopeScaling::None },
        context_length: 4096,
        qkv_bias: false,
        qk_norm: false,
        tied_embeddings: true,
        sliding_window: None,
    }
}

/// The spec of Qwen3-0.6B.
pub fn qwen3_0_6b_spec() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 151_936,
        hidden_size: 1024,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate_size: 3072,
        norm_eps: 1e-6,
        rope: RopeSpec { theta: 1_000_000.0, dim: 128, scaling: RopeScaling::None },
        context_length: 40_960,
        qkv_bias: false,
        qk_norm: true,
        tied_embeddings: true,
        sliding_window: None,
    }
}

/// The spec of Qwen3-8B.
pub fn qwen3_8b_spec() -> DecoderSpec {
    DecoderSpec {
        hidden_size: 4096,
        layers: 36,
        heads: 32,
        intermediate_size: 12_288,
        tied_embeddings: false,
        ..qwen3_0_6b_spec()
    }
}

/// The spec of Qwen3-32B.
pub fn qwen3_32b_spec() -> DecoderSpec {
    DecoderSpec { hidden_size: 5120, layers: 64, heads: 64, intermediate_size: 25_600, ..qwen3_8b_spec() }
}

fn write_json(path: &Path, value: &serde_json::Value) -> io::Result<()> {
    fs::write(path, format!("{value:#}\n"))
}

fn write_weights(path: &Path, spec: &DecoderSpec, dtype: DType, seed: u64) -> io::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    let mut entry = |name: String, dtype: DType, shape: &[usize]| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.block_bytes();
        let dtype = if dtype == DType::F8E4M3 { "F8_E4M3" } else { dtype.name() };
        header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    };
    for id in WeightId::all(spec) {
        let (rows, cols) = id.shape(spec);
        let (name, dtype) = (weights::safetensors_name(id), stored(id, dtype));
        let shape = if id.is_vector() { vec![cols] } else { vec![rows, cols] };
        entry(name.clone(), dtype, &shape);
        if dtype == DType::F8E4M3 {
            let blocks = [rows.div_ceil(SCALE_BLOCK), cols.div_ceil(SCALE_BLOCK)];
            entry(weights::scales_name(&name), fp8::SCALES, &blocks);
        }
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let file = File::create(path)?;
    let length = (header.len() as u64).to_le_bytes();
    file.write_all_at(&[&length, header.as_slice()].concat(), 0)?;
    let mut at = (length.len() + header.len()) as u64;
    let tensors: Vec<(u64, usize, WeightId)> = WeightId::all(spec)
        .enumerate()
        .map(|(index, id)| {
            let begin = at;
            at += bytes_of(id, spec, dtype);
            (begin, index, id)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&(begin, index, id)) = tensors.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (rows, cols) = id.shape(spec);
            let numbers = Numbers { law: law(id, spec), random: random::Uniform::new(seed, index as u64) };
            match stored(id, dtype) {
                DType::F8E4M3 => file.write_all_at(&fp8::encode(rows, cols, numbers), begin)?,
                dtype => write_floats(&file, begin, rows * cols, dtype, numbers)?,
            }
        }
        Ok(())
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Bytes of a weight in its file, its scales included.
fn bytes_of(id: WeightId, spec: &DecoderSpec, dtype: DType) -> u64 {
    let (rows, cols) = id.shape(spec);
    let bytes = match stored(id, dtype) {
        DType::F8E4M3 => rows * cols + fp8::scale_bytes(rows, cols),
        dtype => rows * cols * dtype.block_bytes(),
    };
    bytes as u64
}

/// The numbers of a weight, one after the other.
struct Numbers {
    law: Law,
    random: random::Uniform,
}

impl Numbers {
    fn next(&mut self) -> f32 {
        self.law.mean + self.law.deviation * self.random.next()
    }
}

/// Writes `count` numbers from offset `at` on.
fn write_floats(
    file: &File,
    mut at: u64,
    count: usize,
    dtype: DType,
    mut numbers: Numbers,
) -> io::Result<()> {
    const AT_ONCE: usize = 1 << 20;
    let mut bytes = Vec::with_capacity(AT_ONCE * dtype.block_bytes());
    let mut left = count;
    while left > 0 {
        bytes.clear();
        for _ in 0..left.min(AT_ONCE) {
            let value = numbers.next();
            match dtype {
                DType::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                DType::BF16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
                _ => bytes.extend_from_slice(&value.to_le_bytes()),
            }
        }
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
        left -= left.min(AT_ONCE);
    }
    Ok(())
}

/// How a weight is stored in a checkpoint of `dtype`: of an FP8 one only the matrices of layers are FP8.
fn stored(id: WeightId, dtype: DType) -> DType {
    match (dtype, id) {
        (DType::F8E4M3, WeightId::Layer(..)) if !id.is_vector() => DType::F8E4M3,
        (DType::F8E4M3, _) => DType::BF16,
        _ => dtype,
    }
}

struct Law {
    mean: f32,
    deviation: f32,
}

/// Attention scores get a standard deviation near 3, logits near 4.
fn law(id: WeightId, spec: &DecoderSpec) -> Law {
    const EMBEDDING: f32 = 0.05;
    let around = |mean: f32| Law { mean, deviation: mean / 5.0 };
    let width = (spec.hidden_size as f32).sqrt();
    let cols = (id.shape(spec).1 as f32).sqrt();
    match id {
        WeightId::Embedding => Law { mean: 0.0, deviation: EMBEDDING },
        WeightId::Head => Law { mean: 0.0, deviation: 4.0 / width },
        WeightId::FinalNorm if spec.tied_embeddings => around(4.0 / (EMBEDDING * width)),
        WeightId::FinalNorm => around(1.0),
        WeightId::Layer(_, weight) => match weight {
            LayerWeight::AttentionNorm | LayerWeight::MlpNorm => around(1.0),
            LayerWeight::QNorm | LayerWeight::KNorm => around(1.7),
            LayerWeight::QBias | LayerWeight::KBias | LayerWeight::VBias => Law { mean: 0.0, deviation: 0.7 },
            LayerWeight::Q | LayerWeight::K => Law { mean: 0.0, deviation: 1.7 / cols },
            _ => Law { mean: 0.0, deviation: 1.0 / cols },
        },
    }
}

#[cfg(test)]
mod tests;
