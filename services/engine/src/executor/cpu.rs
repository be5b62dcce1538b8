use anyhow::Context;
use cpu::{CpuConfig, CpuExecutor, KvBudget, KvDtype, LoadProgress, Precision};
use messages::lease::ModelCard;

use super::open_model;
use crate::settings::{Dtype, EngineSettings, KvCacheDtype, StepLimits};

pub(super) fn build(
    settings: &EngineSettings,
    limits: StepLimits,
    card: &ModelCard,
) -> anyhow::Result<CpuExecutor> {
    if let Some(quantization) = settings.quantization {
        let name = quantization.name();
        anyhow::bail!("--quantization {name} needs a GPU; on the CPU use a GGUF file of a quantised type");
    }
    let model = open_model(settings)?;
    let kv = match settings.max_total_tokens {
        Some(tokens) => KvBudget::Pages(tokens / settings.page_size),
        None => KvBudget::Bytes(settings.kv_cache_mib << 20),
    };
    let threads = match settings.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let config = CpuConfig {
        threads,
        kv_dtype: kv_dtype(settings)?,
        page_size: settings.page_size,
        kv,
        slots: limits.running,
        max_batch_tokens: limits.tokens(),
        context_length: Some(card.context_length),
        isa: None,
        precision: match settings.dtype {
            Dtype::Auto => Precision::Packed,
            Dtype::Float32 => Precision::F32,
        },
    };
    let mut progress = |LoadProgress { done, total }| {
        tracing::info!(target: "progress", done, total, "loading weights");
    };
    CpuExecutor::new(&model, &config, &mut progress).context("cpu executor")
}

fn kv_dtype(settings: &EngineSettings) -> anyhow::Result<KvDtype> {
    Ok(match (settings.kv_cache_dtype, settings.dtype) {
        (KvCacheDtype::Auto, Dtype::Auto) | (KvCacheDtype::F16, _) => KvDtype::F16,
        (KvCacheDtype::Auto, Dtype::Float32) | (KvCacheDtype::F32, _) => KvDtype::F32,
        (KvCacheDtype::Bf16, _) => KvDtype::Bf16,
        (other @ KvCacheDtype::Fp8E4m3, _) => {
            anyhow::bail!("--kv-cache-dtype {} is none of f16, bf16, f32, which the CPU takes", other.name())
        }
    })
}
