//! The life of an engine process.

use std::{process::ExitCode, sync::Arc, time::Duration};

use actors::{
    Context, lane,
    process::{self, ProcessSettings, Running, Spec},
};
use anyhow::Context as _;
use catalog::Naming;
use messages::{Role, block::ClusterKey, lease::ModelCard};

use kv::transfer::ReceiverConfig;
use tokio::sync::mpsc;

use crate::{
    actor::EngineActor,
    broadcast::Broadcast,
    device::{Device, Report},
    executor::Target,
    prefill::PrefillActor,
    remote::Remote,
    settings::EngineSettings,
    transport,
};

/// How often a drain looks whether any run is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Of the transfer slots, one grant gets at most one in so many.
const GRANTS: u32 = 4;

/// Serves `role` (prefill or decode) until the process is told to stop.
pub fn run(role: Role, settings: EngineSettings, process: ProcessSettings) -> ExitCode {
    let card = match card(&settings) {
        Ok(card) => card,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    if role == Role::Prefill && settings.disable_radix_cache {
        eprintln!("error: a prefill engine hands out cached blocks: leave out --disable-radix-cache");
        return ExitCode::from(2);
    }
    let (secret, key) = (process.cluster_key.clone(), ClusterKey::derive(&process.cluster_key));
    let spec = Spec { role, pool: card.pool(), card: Some(card.clone()) };
    process::run(spec, process, |context| async move {
        let target = Target::resolve(&settings.device)?;
        let scheduler = settings.scheduler(key.clone(), settings.step_limits(target))?;
        let floor = Duration::from_secs_f64(settings.step_floor_ms.max(0.0) / 1000.0);
        let (model, chosen) = (card.clone(), settings.clone());
        let build = move || target.build(&chosen, &model);
        let me = context.me.instance.clone();
        let (device, reports) = Device::start(me, build, scheduler, floor).await?;
        let engine = device.spec.clone();
        let broadcast = Broadcast::new(context.clone(), device.clone());
        tokio::spawn(broadcast.clone().keep());
        let parts = Parts { context: context.clone(), device, broadcast, revision: card.revision, key };
        let engine_role = if role == Role::Prefill {
            parts.prefill(reports, &settings, &secret).await?
        } else {
            parts.decode(reports, &settings, &secret).await?
        };
        context
            .life
            .ready(move |lease| {
                lease.kv_tokens = Some(u64::from(engine.pages) * u64::from(engine.page_size));
                lease.page_size = Some(engine.page_size);
                lease.numerics_class = Some(engine.numerics_class);
            })
            .await;
        Ok(engine_role)
    })
}

/// What an engine is made of, whatever its role.
struct Parts {
    context: Context,
    device: Device,
    broadcast: Arc<Broadcast>,
    revision: String,
    key: ClusterKey,
}

impl Parts {
    async fn decode(
        self,
        reports: mpsc::Receiver<Report>,
        settings: &EngineSettings,
        secret: &str,
    ) -> anyhow::Result<Engine> {
        let Self { context, device, broadcast, revision, key } = self;
        let slots = settings.transfer_slots;
        let remote = if slots > 0 && !settings.disable_radix_cache {
            let layout = transport::layout(&device.spec, &revision);
            let config = ReceiverConfig { layout, slots, slots_per_grant: slots.div_ceil(GRANTS) };
            let transports = transport::transports(settings, secret, device.memory.clone())?;
            let started = Remote::start(context.clone(), device.clone(), config, &transports);
            Some(started.context("transfer of kv pages")?)
        } else {
            None
        };
        let actor = EngineActor::new(context.clone(), device, broadcast, remote, revision, key);
        tokio::spawn(actor.clone().publish(reports));
        tokio::spawn(actor.clone().keep());
        lane::serve(&context, actor.clone()).await?;
        Ok(Engine::Decode(actor))
    }

    async fn prefill(
        self,
        reports: mpsc::Receiver<Report>,
        settings: &EngineSettings,
        secret: &str,
    ) -> anyhow::Result<Engine> {
        let Self { context, device, broadcast, revision, key } = self;
        let layout = transport::layout(&device.spec, &revision);
        let transports = transport::transports(settings, secret, device.memory.clone())?;
        let actor = PrefillActor::new(context.clone(), device, broadcast, layout, key, transports);
        tokio::spawn(actor.clone().publish(reports));
        tokio::spawn(actor.clone().keep());
        lane::serve(&context, actor.clone()).await?;
        Ok(Engine::Prefill(actor))
    }
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

enum Engine {
    Decode(Arc<EngineActor>),
    Prefill(Arc<PrefillActor>),
}

impl Engine {
    fn is_idle(&self) -> bool {
        match self {
            Self::Decode(actor) => actor.is_idle(),
            Self::Prefill(actor) => actor.is_idle(),
        }
    }
}

impl Running for Engine {
    async fn idle(&self) {
        while !self.is_idle() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn abort(&self) {
        match self {
            Self::Decode(actor) => actor.hand_back(),
            Self::Prefill(actor) => actor.hand_back(),
        }
    }
}
