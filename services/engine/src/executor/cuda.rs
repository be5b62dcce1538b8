use std::path::PathBuf;

use anyhow::Context;
use cuda::{
    CompileMode, CudaConfig, CudaError, CudaExecutor, Device, DeviceConfig, KvBudget, KvFormat, Library,
    WeightFormat, ops::GemmMode,
};
use messages::lease::ModelCard;

use super::open_model;
use crate::settings::{Dtype, EngineSettings, KvCacheDtype, Quantization, StepLimits};

/// The GPUs that a CUDA engine can run on, by number; `aside` hears why one is passed over.
pub fn usable_gpus(aside: impl FnMut(CudaError)) -> impl Iterator<Item = usize> {
    usable(cuda::count_gpus(), cuda::require_gpu, aside)
}

fn usable(
    count: Result<usize, CudaError>,
    require: impl Fn(usize) -> Result<(), CudaError>,
    mut aside: impl FnMut(CudaError),
) -> impl Iterator<Item = usize> {
    let count = count.unwrap_or_else(|why| {
        // Machines without a GPU have no driver.
        if !matches!(why, CudaError::Missing(Library::Driver)) {
            aside(why);
        }
        0
    });
    (0..count).filter(move |&gpu| require(gpu).map_err(&mut aside).is_ok())
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
        transfer_slots,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ampere(gpu: usize) -> Result<(), CudaError> {
        Err(CudaError::Capability { name: format!("gpu {gpu}"), capability: (8, 0) })
    }

    #[test]
    fn gpus_that_cannot_run_the_kernels_are_passed_over_with_a_reason() {
        let mut asides = Vec::new();
        let require = |gpu| if gpu == 1 || gpu == 3 { Ok(()) } else { ampere(gpu) };
        let found: Vec<_> = usable(Ok(4), require, |why| asides.push(why.to_string())).collect();
        assert_eq!(found, [1, 3]);
        assert_eq!(asides.len(), 2);
        assert!(asides[0].contains("gpu 0") && asides[1].contains("gpu 2"), "{asides:?}");
    }

    #[test]
    fn only_what_could_be_mended_is_worth_a_word() {
        let reasons = |count| {
            let mut asides = 0;
            assert_eq!(usable(count, ampere, |_| asides += 1).next(), None);
            asides
        };
        assert_eq!(reasons(Err(CudaError::Missing(Library::Driver))), 0);
        assert_eq!(reasons(Err(CudaError::Missing(Library::Nvrtc))), 1);
        assert_eq!(reasons(Ok(1)), 1);
    }
}
