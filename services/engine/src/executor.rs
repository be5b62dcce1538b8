mod cpu;
mod cuda;
mod sim;

use anyhow::Context;
use messages::lease::ModelCard;
use models::{Executor, Model};

use crate::settings::EngineSettings;

/// Makes the executor that the settings ask for; on the device thread, which it never leaves.
pub(crate) fn build(settings: &EngineSettings, card: &ModelCard) -> anyhow::Result<Box<dyn Executor>> {
    match settings.device.as_str() {
        "auto" if cuda::is_present() => Ok(Box::new(cuda::build(settings, card, 0)?)),
        "auto" | "cpu" => Ok(Box::new(cpu::build(settings, card)?)),
        "sim" => Ok(Box::new(sim::build(settings, card))),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Ok(Box::new(cuda::build(settings, card, ordinal)?)),
            _ => anyhow::bail!("--device {other} is none of auto, cpu, cuda:N, sim"),
        },
    }
}

fn open_model(settings: &EngineSettings) -> anyhow::Result<Model> {
    let path = settings.model_path.as_deref().context("--model-path is needed")?;
    Model::open(path).with_context(|| format!("model {}", path.display()))
}
