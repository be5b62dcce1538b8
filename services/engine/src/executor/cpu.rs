use anyhow::Context;
use cpu::{CpuConfig, CpuExecutor, KvBudget, KvDtype, LoadProgress, Precision};
use messages::lease::ModelCard;

use super::open_model;
use crate::settings::{EngineSettings, StepLimits};

pub(super) fn build(
    settings: &EngineSettings,
    limits: StepLimits,
    card: &ModelCard,
) -> anyhow::Result<CpuExecutor> {
    if let Some(quantization) = &settings.quantization {
        anyhow::bail!(
            "--quantization {quantization} needs a GPU; on the CPU use a GGUF file of a quantised type"
        );
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
        kv_dtype: kv_dtype(&settings.kv_cache_dtype, settings.is_f32()?)?,
        page_size: settings.page_size,
        kv,
        slots: limits.running,
        max_batch_tokens: limits.tokens(),
        context_length: Some(card.context_length),
        isa: None,
        precision: if settings.is_f32()? { Precision::F32 } else { Precision::Packed },
    };
    let mut progress = |LoadProgress { done, total }| {
        tracing::info!(target: "progress", done, total, "loading weights");
    };
    CpuExecutor::new(&model, &config, &mut progress).context("cpu executor")
}

fn kv_dtype(name: &str, is_f32: bool) -> anyhow::Result<KvDtype> {
    if name == "auto" {
        return Ok(if is_f32 { KvDtype::F32 } else { KvDtype::F16 });
    }
    let found = KvDtype::ALL.into_iter().find(|dtype| dtype.name() == name);
    found.with_context(|| format!("--kv-cache-dtype {name} is none of f16, bf16, f32, which the CPU takes"))
}
