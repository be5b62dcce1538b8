//! Executors and models that cases set up.

use cuda::{CompileMode, CudaConfig, DeviceConfig, KvBudget, KvFormat, WeightFormat, ops::GemmMode};
use models::{DecoderSpec, RopeScaling, RopeSpec};

use crate::harness::{Failure, cache_dir};

pub const PAGE_SIZE: u32 = 16;

pub fn config(slots: u32, max_batch_tokens: u32, kv: KvBudget) -> CudaConfig {
    CudaConfig {
        device: DeviceConfig {
            ordinal: 0,
            cache_dir: cache_dir(),
            compile: CompileMode::Workers(std::env::current_exe().expect("the path of this test")),
        },
        page_size: PAGE_SIZE,
        kv,
        kv_format: KvFormat::Bf16,
        transfer_slots: 0,
        slots,
        max_batch_tokens,
        context_length: None,
        gemm: GemmMode::BatchInvariant,
        weights: WeightFormat::AsStored,
        persistent: true,
        halves_from: Some(CudaConfig::HALVES_FROM),
        graphs: true,
    }
}

pub fn failure(error: impl ToString) -> Failure {
    Failure(error.to_string())
}

pub fn random_spec(head_dim: u32, heads: u32, kv_heads: u32, window: Option<u32>) -> DecoderSpec {
    DecoderSpec {
        vocab_size: 1000,
        hidden_size: 192,
        layers: 3,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: 320,
        norm_eps: 1e-6,
        rope: RopeSpec { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::None },
        context_length: 1024,
        qkv_bias: false,
        qk_norm: window.is_none(),
        tied_embeddings: true,
        sliding_window: window,
    }
}

/// Products of as many columns as keep all blocks of several kernels busy.
pub fn wide_spec() -> DecoderSpec {
    DecoderSpec { hidden_size: 1088, intermediate_size: 2240, ..random_spec(128, 9, 3, None) }
}

pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - maximum).exp()).sum();
    logits.iter().map(|&l| f64::from(l - maximum) - total.ln()).collect()
}
