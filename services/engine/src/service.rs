//! The life of an engine process.

use std::{process::ExitCode, sync::Arc, time::Duration};

use actors::{
    lane,
    process::{self, ProcessSettings, Running, Spec},
};
use anyhow::Context as _;
use catalog::Naming;
use messages::{Role, block::ClusterKey, lease::ModelCard};

use crate::{actor::EngineActor, device::Device, executor, settings::EngineSettings};

/// How often a drain looks whether any run is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Serves `role` (prefill or decode) until the process is told to stop.
pub fn run(role: Role, settings: EngineSettings, process: ProcessSettings) -> ExitCode {
    let card = match card(&settings) {
        Ok(card) => card,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let key = ClusterKey::derive(&process.cluster_key);
    let spec = Spec { role, pool: card.pool(), card: Some(card.clone()) };
    process::run(spec, process, |context| async move {
        let scheduler = settings.scheduler(key.clone())?;
        let revision = card.revision.clone();
        let floor = Duration::from_secs_f64(settings.step_floor_ms.max(0.0) / 1000.0);
        let (device, reports) =
            Device::start(move || executor::build(&settings, &card), scheduler, floor).await?;
        let engine = device.spec.clone();
        let actor = EngineActor::new(context.clone(), device, revision, key);
        tokio::spawn(actor.clone().publish(reports));
        tokio::spawn(actor.clone().keep());
        lane::serve(&context, actor.clone()).await?;
        context
            .life
            .ready(move |lease| {
                lease.kv_tokens = Some(u64::from(engine.pages) * u64::from(engine.page_size));
                lease.page_size = Some(engine.page_size);
                lease.numerics_class = Some(engine.numerics_class);
            })
            .await;
        Ok(Engine { actor })
    })
}

fn card(settings: &EngineSettings) -> anyhow::Result<ModelCard> {
    let path = settings
        .model_path
        .as_deref()
        .context("--model-path is needed: a Hugging Face folder or GGUF file")?;
    let naming =
        Naming { served_name: settings.served_model_name.clone(), context_length: settings.context_length };
    Ok(catalog::open(path, &naming)?.1)
}

struct Engine {
    actor: Arc<EngineActor>,
}

impl Running for Engine {
    async fn idle(&self) {
        while !self.actor.is_idle() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn abort(&self) {
        self.actor.hand_back();
    }
}
