//! The life of an engine process.

use std::{process::ExitCode, sync::Arc, time::Duration};

use actors::{
    Context, lane,
    process::{self, ProcessSettings, Running, Spec},
};
use anyhow::Context as _;
use catalog::Naming;
use kv::{PageLayout, transfer::ReceiverConfig};
use messages::{
    Role,
    block::ClusterKey,
    lease::{Lease, ModelCard},
};
use parking_lot::Mutex;

use crate::{
    actor::EngineActor,
    broadcast::Broadcast,
    device::Device,
    executor::Target,
    prefill::PrefillActor,
    remote::Remote,
    runs::Runs,
    settings::{DeviceChoice, EngineSettings},
    transport,
};

/// How often a drain looks whether any run is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Of the transfer slots, one grant gets at most one in so many.
const GRANTS: u32 = 4;

/// Serves `role` (prefill or decode) until the process is told to stop.
pub fn run(role: Role, settings: EngineSettings, process: ProcessSettings) -> ExitCode {
    let card = match check(role, &settings).and_then(|()| card(&settings)) {
        Ok(card) => card,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let spec = Spec { role, pool: card.pool(), card: Some(card.clone()) };
    let (count, key) = (settings.sim_engines, ClusterKey::derive(&process.cluster_key));
    let plan = Arc::new(Plan { role, settings, secret: process.cluster_key.clone(), key, card });
    process::run_many(spec, count, process, move |context| plan.clone().start(context))
}

/// Refuses settings that contradict each other.
fn check(role: Role, settings: &EngineSettings) -> anyhow::Result<()> {
    anyhow::ensure!(
        role != Role::Prefill || !settings.disable_radix_cache,
        "a prefill engine hands out cached blocks: leave out --disable-radix-cache"
    );
    anyhow::ensure!(
        settings.sim_engines == 1 || settings.device == DeviceChoice::Sim,
        "--sim-engines {} needs --device sim: other engines have a process each",
        settings.sim_engines
    );
    Ok(())
}

/// What every engine of a process is started from.
struct Plan {
    role: Role,
    settings: EngineSettings,
    secret: String,
    key: ClusterKey,
    card: ModelCard,
}

impl Plan {
    async fn start(self: Arc<Self>, context: Context) -> anyhow::Result<Engine> {
        let settings = &self.settings;
        let target = Target::resolve(settings.device);
        let scheduler = settings.scheduler(self.key.clone(), target.step_limits(settings));
        let floor = Duration::from_secs_f64(settings.step_floor_ms.max(0.0) / 1000.0);
        let plan = self.clone();
        let build = move || target.build(&plan.settings, &plan.card, plan.transfer_slots());
        let me = context.me.instance.clone();
        let (device, reports) = Device::start(me, build, scheduler, floor).await?;
        let (spec, load) = (device.spec.clone(), device.load());
        let layout = transport::layout(&spec, &self.card.revision);
        let accepts = self.accepts(&layout);
        let remote = self.remote(&context, &device, &layout, &accepts).context("transfer of kv pages")?;
        let computes_all = self.role == Role::Decode && remote.is_none();
        let runs: Arc<Mutex<Runs>> = Arc::default();
        let broadcast = Broadcast::new(context.clone(), device.clone(), runs.clone(), remote.clone());
        tokio::spawn(broadcast.clone().keep());
        let engine = if self.role == Role::Prefill {
            let transports = transport::transports(settings, &self.secret, device.memory.clone())?;
            let (context, layout, key) = (context.clone(), layout.clone(), self.key.clone());
            let actor = PrefillActor::new(context.clone(), device, broadcast, layout, key, transports);
            tokio::spawn(actor.clone().publish(reports));
            tokio::spawn(actor.clone().keep());
            lane::serve(&context, actor.clone()).await?;
            Engine::Prefill(actor)
        } else {
            let (revision, key) = (self.card.revision.clone(), self.key.clone());
            let actor = EngineActor::new(context.clone(), device, broadcast, runs, remote, revision, key);
            tokio::spawn(actor.clone().publish(reports));
            tokio::spawn(actor.clone().keep());
            lane::serve(&context, actor.clone()).await?;
            Engine::Decode(actor)
        };
        let amend = move |lease: &mut Lease| {
            lease.computes_all = computes_all;
            lease.kv_tokens = Some(u64::from(load.blocks_total) * u64::from(spec.page_size));
            lease.page_size = Some(spec.page_size);
            lease.numerics_class = Some(spec.numerics_class);
            lease.kv_layout = Some(layout.to_string());
            lease.kv_accepts = accepts.iter().map(PageLayout::to_string).collect();
            lease.max_running = Some(load.max_running);
            lease.max_queued = Some(load.max_queued);
        };
        context.life.ready(amend).await;
        Ok(engine)
    }

    /// Pages that may be on their way here at once; none where the settings leave no room for that.
    fn transfer_slots(&self) -> u32 {
        let takes = self.role != Role::Prefill && !self.settings.disable_radix_cache;
        if takes { self.settings.transfer_slots } else { 0 }
    }

    /// What lets prompts of a decode engine be computed elsewhere.
    fn remote(
        &self,
        context: &Context,
        device: &Device,
        layout: &PageLayout,
        accepts: &[PageLayout],
    ) -> anyhow::Result<Option<Arc<Remote>>> {
        let slots = self.transfer_slots();
        if slots == 0 {
            return Ok(None);
        }
        let others = accepts.iter().filter(|&accepted| accepted != layout).cloned().collect();
        let accepts = accepts.iter().map(PageLayout::to_string).collect();
        let layout = layout.clone();
        let config = ReceiverConfig { layout, others, slots, slots_per_grant: slots.div_ceil(GRANTS) };
        let transports = transport::transports(&self.settings, &self.secret, device.memory.clone())?;
        Remote::start(context.clone(), device.clone(), config, accepts, &transports).map(Some)
    }

    /// Layouts of pages that are taken from engines of other numerics classes.
    fn accepts(&self, layout: &PageLayout) -> Vec<PageLayout> {
        if self.role == Role::Prefill || !self.settings.foreign_prefill {
            return Vec::new();
        }
        std::iter::once(layout.clone()).chain(layout.others()).collect()
    }
}

pub(crate) fn card(settings: &EngineSettings) -> anyhow::Result<ModelCard> {
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
