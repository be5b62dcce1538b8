mod cpu;
mod cuda;
mod sim;

use std::sync::Arc;

use anyhow::Context;
use kv::transfer::DeviceMemory;
use messages::lease::ModelCard;
use models::{Executor, Model};

pub use self::cuda::usable_gpus;
use crate::settings::{DeviceChoice, EngineSettings, StepLimits};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
    Sim,
}

impl Target {
    /// What `--device` asks for; `auto` is the first GPU that can run the kernels, if any.
    pub fn resolve(device: DeviceChoice) -> Self {
        match device {
            DeviceChoice::Auto => {
                let mut gpus = usable_gpus(|why| tracing::warn!(%why, "a gpu is left aside"));
                gpus.next().map_or(Self::Cpu, Self::Cuda)
            }
            DeviceChoice::Cpu => Self::Cpu,
            DeviceChoice::Cuda(ordinal) => Self::Cuda(ordinal),
            DeviceChoice::Sim => Self::Sim,
        }
    }

    pub(crate) fn step_limits(self, settings: &EngineSettings) -> StepLimits {
        settings.step_limits(match self {
            Self::Cuda(_) => StepLimits::GPU,
            Self::Cpu | Self::Sim => StepLimits::CPU,
        })
    }

    /// Bytes a second that a GPU reads at best, measured now; `None` of other devices.
    pub(crate) fn read_rate(self, settings: &EngineSettings) -> anyhow::Result<Option<f64>> {
        match self {
            Self::Cuda(ordinal) => cuda::read_rate(settings, ordinal).map(Some),
            Self::Cpu | Self::Sim => Ok(None),
        }
    }

    /// Makes the executor; on the device thread, which it never leaves. A GPU keeps memory for `transfer_slots` pages.
    pub(crate) fn build(
        self,
        settings: &EngineSettings,
        card: &ModelCard,
        transfer_slots: u32,
    ) -> anyhow::Result<Built> {
        let limits = self.step_limits(settings);
        Ok(match self {
            Self::Cpu => {
                let executor = cpu::build(settings, limits, card)?;
                let weight_bytes = executor.weight_bytes_per_step();
                Built { weight_bytes, ..Built::on_host(executor) }
            }
            Self::Cuda(ordinal) => {
                let executor = cuda::build(settings, limits, card, transfer_slots, ordinal)?;
                let memory = Arc::new(executor.device().shared_memory());
                let weight_bytes = executor.weight_bytes_per_step();
                Built { executor: Box::new(executor), memory: Some(memory), weight_bytes }
            }
            Self::Sim => Built::on_host(sim::build(settings, limits, card)),
        })
    }
}

/// An executor, and the memory of its device if other processes can reach that.
pub struct Built {
    pub executor: Box<dyn Executor>,
    pub memory: Option<Arc<dyn DeviceMemory>>,
    /// Weights that a step reads.
    pub weight_bytes: u64,
}

impl Built {
    pub fn on_host(executor: impl Executor + 'static) -> Self {
        Self { executor: Box::new(executor), memory: None, weight_bytes: 0 }
    }
}

fn open_model(settings: &EngineSettings) -> anyhow::Result<Model> {
    let path = settings.model_path.as_deref().context("--model-path is needed")?;
    Model::open(path).with_context(|| format!("model {}", path.display()))
}

#[cfg(test)]
mod tests {
    use ::cuda::CudaExecutor;
    use messages::submit::Sampling;

    #[test]
    fn a_gpu_takes_what_clients_may_ask_for() {
        const END_TOKENS: usize = 256;
        let bounds = CudaExecutor::SAMPLING;
        assert!(bounds.logit_bias >= Sampling::MAX_BIASES);
        assert!(bounds.masked_stops >= Sampling::MAX_STOP_IDS + END_TOKENS);
        assert!(bounds.top_logprobs >= usize::from(Sampling::MAX_TOP_LOGPROBS));
    }
}
