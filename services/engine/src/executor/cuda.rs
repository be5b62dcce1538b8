use std::path::PathBuf;

use anyhow::Context;
use cuda::{
    CompileMode, CudaConfig, CudaError, CudaExecutor, Device, DeviceConfig, KvBudget, KvFormat, Library,
    WeightFormat, ops::GemmMode,
};
use messages::lease::ModelCard;

use super::open_model;
use crate::settings::{Dtype, EngineSettings, KvCacheDtype, Quantization, StepLimits};

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
    transfer_slots: u32,
    ordinal: usize,
) -> anyhow::Result<CudaExecutor> {
    let model = open_model(settings)?;
    let kv = match settings.max_total_tokens {
        Some(tokens) => KvBudget::Pages(tokens / settings.page_size),
        None => KvBudget::MemoryFraction(settings.mem_fraction_static),
    };
    let config = CudaConfig {
        device: device(settings, ordinal)?,
        page_size: settings.page_size,
        kv,
        kv_format: kv_format(settings)?,
        transfer_slots: if settings.kv_transport.takes_device_memory() { transfer_slots } else { 0 },
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

pub(super) fn read_rate(settings: &EngineSettings, ordinal: usize) -> anyhow::Result<f64> {
    Ok(Device::open(&device(settings, ordinal)?)?.read_rate()?)
}

fn device(settings: &EngineSettings, ordinal: usize) -> anyhow::Result<DeviceConfig> {
    Ok(DeviceConfig {
        ordinal,
        cache_dir: settings.kernel_cache.clone().map_or_else(default_cache, Ok)?,
        compile: CompileMode::Workers(std::env::current_exe().context("path of this program")?),
    })
}

fn kv_format(settings: &EngineSettings) -> anyhow::Result<KvFormat> {
    let name = settings.kv_cache_dtype.name();
    match (settings.dtype, settings.kv_cache_dtype) {
        (_, KvCacheDtype::Auto) | (Dtype::Float32, KvCacheDtype::F32) => Ok(KvFormat::default()),
        (Dtype::Float32, _) => {
            anyhow::bail!("--kv-cache-dtype {name} is not built for --dtype float32, which keeps f32")
        }
        (Dtype::Auto, KvCacheDtype::Bf16) => Ok(KvFormat::Bf16),
        (Dtype::Auto, KvCacheDtype::Fp8E4m3) => Ok(KvFormat::Fp8E4m3),
        (Dtype::Auto, KvCacheDtype::F16 | KvCacheDtype::F32) => {
            anyhow::bail!("--kv-cache-dtype {name} is none of bf16, fp8_e4m3, which a GPU takes")
        }
    }
}

fn weight_format(settings: &EngineSettings) -> anyhow::Result<WeightFormat> {
    match (settings.dtype, settings.quantization) {
        (Dtype::Auto, None) => Ok(WeightFormat::AsStored),
        (Dtype::Auto, Some(Quantization::Fp8)) => Ok(WeightFormat::Fp8),
        (Dtype::Float32, None) => Ok(WeightFormat::Float32),
        (Dtype::Float32, Some(other)) => {
            anyhow::bail!("--quantization {} and --dtype float32 exclude each other", other.name())
        }
    }
}

fn default_cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(home).context("no HOME to keep compiled kernels in: set --kernel-cache")?;
    Ok(cache.join("stator/kernels"))
}
