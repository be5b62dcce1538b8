use std::time::Duration;

use anyhow::Context;
use cpu::{CpuConfig, CpuExecutor, KvBudget, KvDtype, LoadProgress, Precision};
use messages::lease::ModelCard;
use models::{Executor, ExecutorSpec, Model};

use crate::{
    settings::EngineSettings,
    sim::{SimExecutor, Timing},
};

/// Makes the executor that the settings ask for; on the device thread, which it never leaves.
pub(crate) fn build(settings: &EngineSettings, card: &ModelCard) -> anyhow::Result<Box<dyn Executor>> {
    match settings.device.as_str() {
        "auto" | "cpu" => Ok(Box::new(cpu(settings, card)?)),
        "sim" => Ok(Box::new(sim(settings, card))),
        other => anyhow::bail!("--device {other} is none of auto, cpu, sim"),
    }
}

fn cpu(settings: &EngineSettings, card: &ModelCard) -> anyhow::Result<CpuExecutor> {
    let path = settings.model_path.as_deref().context("--model-path is needed")?;
    let model = Model::open(path).with_context(|| format!("model {}", path.display()))?;
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
        kv_dtype: kv_dtype(&settings.kv_cache_dtype)?,
        page_size: settings.page_size,
        kv,
        slots: settings.max_running_requests,
        max_batch_tokens: settings.max_batch_tokens(),
        context_length: Some(card.context_length),
        isa: None,
        precision: Precision::Packed,
    };
    let mut progress = |LoadProgress { done, total }| {
        tracing::info!(target: "progress", done, total, "loading weights");
    };
    CpuExecutor::new(&model, &config, &mut progress).context("cpu executor")
}

fn kv_dtype(name: &str) -> anyhow::Result<KvDtype> {
    let known = [KvDtype::F16, KvDtype::Bf16, KvDtype::F32];
    let found = known.into_iter().find(|dtype| dtype.name() == name);
    found.with_context(|| format!("--kv-cache-dtype {name} is none of f16, bf16, f32"))
}

fn sim(settings: &EngineSettings, card: &ModelCard) -> SimExecutor {
    let tokens = settings.max_total_tokens.unwrap_or(SIM_KV_TOKENS);
    let spec = ExecutorSpec {
        device: "sim",
        pages: tokens / settings.page_size,
        page_size: settings.page_size,
        slots: settings.max_running_requests,
        max_batch_tokens: settings.max_batch_tokens(),
        depth: 1,
        vocab_size: card.vocab_size,
        context_length: card.context_length,
        kv_bytes_per_token: 0,
        numerics_class: "sim".to_owned(),
    };
    let prefill_token = match settings.sim_prefill_rate {
        rate if rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
        _ => Duration::ZERO,
    };
    let step = Duration::from_secs_f64(settings.sim_step_ms.max(0.0) / 1000.0);
    SimExecutor::new(spec, Timing { step, prefill_token })
}

/// KV tokens of a simulated engine unless told otherwise.
const SIM_KV_TOKENS: u32 = 1 << 20;
