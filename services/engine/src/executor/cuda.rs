use std::path::PathBuf;

use anyhow::Context;
use cuda::{
    CompileMode, CudaConfig, CudaError, CudaExecutor, DeviceConfig, KvBudget, KvFormat, Library,
    WeightFormat, ops::GemmMode,
};
use messages::lease::ModelCard;

use super::open_model;
use crate::settings::{EngineSettings, StepLimits};

/// What `auto` looks at.
const FIRST: usize = 0;

/// The first GPU, if a CUDA engine can run on it.
pub(super) fn usable() -> Option<usize> {
    match cuda::require_gpu(FIRST) {
        Ok(()) => Some(FIRST),
        Err(CudaError::Missing(Library::Driver)) => None,
        Err(why) => {
            tracing::warn!(%why, "the gpu is left aside");
            None
        }
    }
}

pub(super) fn build(
    settings: &EngineSettings,
    limits: StepLimits,
    card: &ModelCard,
    ordinal: usize,
) -> anyhow::Result<CudaExecutor> {
    let model = open_model(settings)?;
    let kv = match settings.max_total_tokens {
        Some(tokens) => KvBudget::Pages(tokens / settings.page_size),
        None => KvBudget::MemoryFraction(settings.mem_fraction_static),
    };
    let config = CudaConfig {
        device: DeviceConfig {
            ordinal,
            cache_dir: settings.kernel_cache.clone().map_or_else(default_cache, Ok)?,
            compile: CompileMode::Workers(std::env::current_exe().context("path of this program")?),
        },
        page_size: settings.page_size,
        kv,
        kv_format: kv_format(settings)?,
        slots: limits.running,
        max_batch_tokens: limits.tokens(),
        context_length: Some(card.context_length),
        gemm: if settings.batch_variant_kernels { GemmMode::BatchVariant } else { GemmMode::BatchInvariant },
        weights: weight_format(settings)?,
        persistent: true,
        halves_from: Some(CudaConfig::HALVES_FROM),
        graphs: true,
    };
    let total = model.spec.layers as usize;
    let mut progress = |done| tracing::info!(target: "progress", done, total, "loading weights");
    CudaExecutor::new(&model, &config, &mut progress).context("cuda executor")
}

fn kv_format(settings: &EngineSettings) -> anyhow::Result<KvFormat> {
    let name = settings.kv_cache_dtype.as_str();
    anyhow::ensure!(
        !settings.is_f32()? || ["auto", "f32"].contains(&name),
        "--kv-cache-dtype {name} is not built for --dtype float32, which keeps f32"
    );
    if name == "auto" || settings.is_f32()? {
        return Ok(KvFormat::default());
    }
    let found = KvFormat::ALL.into_iter().find(|format| format.name() == name);
    found.with_context(|| format!("--kv-cache-dtype {name} is none of bf16, fp8_e4m3, which a GPU takes"))
}

fn weight_format(settings: &EngineSettings) -> anyhow::Result<WeightFormat> {
    match (settings.quantization.as_deref(), settings.is_f32()?) {
        (None, false) => Ok(WeightFormat::AsStored),
        (None, true) => Ok(WeightFormat::Float32),
        (Some("fp8"), false) => Ok(WeightFormat::Fp8),
        (Some(other), true) => anyhow::bail!("--quantization {other} and --dtype float32 exclude each other"),
        (Some(other), false) => anyhow::bail!("--quantization {other} is not built; a GPU quantises to fp8"),
    }
}

fn default_cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(home).context("no HOME to keep compiled kernels in: set --kernel-cache")?;
    Ok(cache.join("stator/kernels"))
}
