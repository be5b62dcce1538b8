use std::time::Duration;

use messages::lease::ModelCard;
use models::{ExecutorSpec, KvLayout, SamplingBounds};

use crate::{
    settings::{EngineSettings, StepLimits},
    sim::{SimExecutor, Timing},
};

pub(super) fn build(settings: &EngineSettings, limits: StepLimits, card: &ModelCard) -> SimExecutor {
    let tokens = settings.max_total_tokens.unwrap_or(SIM_KV_TOKENS);
    let spec = ExecutorSpec {
        device: "sim",
        pages: tokens / settings.page_size,
        page_size: settings.page_size,
        slots: limits.running,
        max_batch_tokens: limits.tokens(),
        depth: 1,
        vocab_size: card.vocab_size,
        context_length: card.context_length,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "sim".to_owned(), layers: 1, layer_bytes: SIM_PAGE_BYTES },
        numerics_class: "sim".to_owned(),
    };
    let prefill_token = match settings.sim_prefill_rate {
        rate if rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
        _ => Duration::ZERO,
    };
    let step = Duration::from_secs_f64(settings.sim_step_ms.max(0.0) / 1000.0);
    SimExecutor::new(spec, Timing { step, prefill_token, page: SIM_PAGE_COPY })
}

/// A page of a simulated engine has no contents; that it travels is shown by this much.
const SIM_PAGE_BYTES: u32 = 64;
/// What a GPU takes to copy a page of an 8 B model (2 MiB) over PCIe 5.
const SIM_PAGE_COPY: Duration = Duration::from_micros(40);
/// KV tokens of a simulated engine unless told otherwise.
const SIM_KV_TOKENS: u32 = 1 << 20;
