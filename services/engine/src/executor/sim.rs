use std::time::Duration;

use messages::lease::ModelCard;
use models::ExecutorSpec;

use crate::{
    settings::EngineSettings,
    sim::{SimExecutor, Timing},
};

pub(super) fn build(settings: &EngineSettings, card: &ModelCard) -> SimExecutor {
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
