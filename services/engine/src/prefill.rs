//! The engine on the bus in its prefill role: computes blocks of prompts for decode engines and pushes them there.

mod cached;
mod tasks;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{
    Context,
    custody::ACCEPT_WITHIN,
    lane::{Responder, Service},
    tombstones::Tombstones,
};
use kv::{
    PageLayout,
    transfer::{Address, Grant, Transports},
};
use messages::{
    Envelope, Fault, FaultCode, InstanceId, RequestId, Role, RunId,
    block::{CacheScope, ClusterKey},
    codec,
    control::{Cancel, Control},
    frame::Pulse,
    lease::Lease,
    pages::Pages,
    prefill::{PrefillAnswer, PrefillNews, PrefillTask, SlotAnswer},
    subject,
};
use models::SamplingParams;
use parking_lot::Mutex;
use scheduler::{Choice, EndReason, Event, Goal, Micros, Request, RunKey};
use tokio::sync::mpsc;

use crate::{
    actor::{FENCE_AFTER, RETRY_AFTER_MS, refusal},
    broadcast::Broadcast,
    device::{Command, Device, Report},
    push::{Push, PushError, Rooms},
};
use cached::Cached;
use tasks::{Task, Tasks};

/// Pause before slots are asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

pub struct PrefillActor {
    context: Context,
    device: Device,
    broadcast: Arc<Broadcast>,
    layout: PageLayout,
    key: ClusterKey,
    transports: Arc<Transports>,
    /// On a device that other hosts do not reach.
    rooms: Option<Arc<Rooms>>,
    /// Where decode engines have lent slots.
    receivers: Mutex<HashMap<InstanceId, Vec<Address>>>,
    tasks: Mutex<Tasks>,
    cached: Mutex<Cached>,
    tombstones: Tombstones,
}

impl PrefillActor {
    pub fn new(
        context: Context,
        device: Device,
        broadcast: Arc<Broadcast>,
        layout: PageLayout,
        key: ClusterKey,
        transports: Transports,
    ) -> Arc<Self> {
        let (tasks, cached, tombstones) = (Mutex::default(), Mutex::default(), Tombstones::default());
        let (transports, receivers) = (Arc::new(transports), Mutex::default());
        let rooms = device.memory.clone().map(|memory| Arc::new(Rooms::new(memory, &layout)));
        Arc::new(Self {
            context,
            device,
            broadcast,
            layout,
            key,
            transports,
            rooms,
            receivers,
            tasks,
            cached,
            tombstones,
        })
    }

    /// Acts on what the device reports, for as long as it does.
    pub async fn publish(self: Arc<Self>, mut reports: mpsc::Receiver<Report>) {
        while let Some(report) = reports.recv().await {
            match report {
                Report::Cache(changes) => {
                    self.cached.lock().hear(&changes);
                    self.broadcast.changes(&changes);
                }
                Report::Step { events, .. } => {
                    let got_on: Vec<RunId> = events.iter().filter_map(computed).collect();
                    events.into_iter().for_each(|event| self.event(event));
                    self.tell_progress(|run| got_on.contains(&run));
                }
                Report::Refused { run, why } => self.fail(RunId(run.0), refusal(&why)),
                Report::Waits { .. } | Report::Landed { .. } => {}
            }
        }
    }

    fn event(self: &Arc<Self>, event: Event) {
        match event {
            Event::Started { run, cached_tokens, .. } => {
                let cached_blocks = cached_tokens / self.layout.page_size;
                if let Some(dispatch) = self.tasks.lock().take_dispatch(RunId(run.0)) {
                    self.broadcast.began(dispatch, cached_tokens);
                }
                self.tasks.lock().started(RunId(run.0), cached_blocks);
                tokio::spawn(self.clone().serve(RunId(run.0), cached_blocks));
            }
            Event::BlocksComputed { run, blocks } => {
                self.device.feeds.computed(run, blocks);
                self.tasks.lock().computed(RunId(run.0), blocks);
            }
            Event::Ended { run, reason, .. } => {
                let fault = match reason {
                    EndReason::DeadlineExceeded => {
                        Fault::new(FaultCode::DeadlineExceeded, "the deadline of the request has passed")
                    }
                    EndReason::Cancelled => Fault::new(FaultCode::Cancelled, "the task was cancelled"),
                    _ => Fault::new(
                        FaultCode::EngineFault,
                        "the engine could not compute a step of this prompt",
                    ),
                };
                self.fail(RunId(run.0), fault);
            }
            Event::PromptScored { .. } | Event::Token { .. } | Event::RunClosed { .. } => {}
        }
    }

    /// Keeps the slow duties: signs of life, fencing, tasks of decode engines that are gone.
    pub async fn keep(self: Arc<Self>) {
        let departed = |lease: &Arc<Lease>| match lease.role {
            Role::Decode => {
                let orphans = self.tasks.lock().of(&lease.instance);
                orphans.into_iter().for_each(|run| self.drop_task(run));
                self.forget(&lease.instance);
            }
            Role::Router => self.device.forget_router(&lease.instance),
            _ => {}
        };
        self.context.keep(|| self.beat(), departed).await;
    }

    fn beat(&self) {
        let clock = self.device.beat();
        self.tasks.lock().tell();
        if self.context.bus.cut_off().is_some_and(|cut| cut > FENCE_AFTER) {
            // Whoever waited computes by itself by now.
            let all = self.tasks.lock().all();
            all.into_iter().for_each(|run| self.drop_task(run));
            return;
        }
        // A device that hangs has nothing good to say.
        if clock.age_ms <= clock.bound_ms {
            self.tell_progress(|_| true);
        }
    }

    fn tell_progress(&self, of: impl Fn(RunId) -> bool) {
        let per_token = self.device.load().prefill_token_time;
        let news = self.tasks.lock().news(self.layout.page_size, per_token, of);
        for (decode, tasks) in news {
            self.tell(&decode, PrefillNews::Pulse { tasks });
        }
    }

    fn tell(&self, decode: &InstanceId, news: PrefillNews) {
        let _ = self.context.bus.tell(self.control_of(decode), None, &Control::Prefill(news));
    }

    fn control_of(&self, decode: &InstanceId) -> String {
        subject::instance_control(self.context.bus.namespace(), Role::Decode, &self.context.me.pool, decode)
    }

    /// Takes a task in and says in how many milliseconds it will be done, or why it is not taken.
    fn admit(&self, envelope: &Envelope, task: &PrefillTask) -> Result<u32, Fault> {
        let page_size = self.layout.page_size as usize;
        if self.context.life.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "the engine is draining"));
        }
        self.check_pages(task)?;
        if !task.prompt.len().is_multiple_of(page_size)
            || task.prompt.len() / page_size <= task.held_blocks as usize
        {
            let (tokens, held) = (task.prompt.len(), task.held_blocks);
            let text = format!("{tokens} tokens hold no whole blocks of {page_size} beyond the first {held}");
            return Err(Fault::invalid("prompt", text));
        }
        let load = self.device.load();
        if load.queued >= load.max_queued {
            let text = format!("{} prompts are queued, the limit is {}", load.queued, load.max_queued);
            return Err(Fault::new(FaultCode::Overloaded, text).retry_after(RETRY_AFTER_MS));
        }
        let run = RunKey(task.run.0);
        let request = Box::new(self.request(envelope, task));
        let computed = self.cached_blocks(&request);
        // A cancel is buried before it looks for the task.
        let mut tasks = self.tasks.lock();
        if self.tombstones.meets(envelope.request, envelope.attempt, Some(task.run)) {
            return Err(Fault::new(FaultCode::Cancelled, "the request was cancelled"));
        }
        if tasks.knows(task.run) {
            return Err(Fault::new(FaultCode::Internal, "the task is here already"));
        }
        let feed = self.device.feeds.open(run);
        if self.device.command(Command::Admit { request, dispatch: task.dispatch.clone() }).is_err() {
            self.device.feeds.close(run);
            let fault = Fault::new(FaultCode::Overloaded, "the engine's intake is full");
            return Err(fault.retry_after(RETRY_AFTER_MS));
        }
        tasks.insert(Task {
            run: task.run,
            request: envelope.request,
            attempt: envelope.attempt,
            decode: task.decode.clone(),
            priority: task.priority,
            dispatch: task.dispatch.clone(),
            held: task.held_blocks,
            blocks: (task.prompt.len() / page_size) as u32,
            computed,
            started: false,
            feed: Some(feed),
        });
        let pulse = tasks.pulse(task.run, self.layout.page_size, load.prefill_token_time);
        Ok(pulse.map_or(0, |pulse| pulse.remaining_ms))
    }

    /// Whether pages of this engine are of use to who asks for them.
    fn check_pages(&self, task: &PrefillTask) -> Result<(), Fault> {
        let layout = self.layout.to_string();
        let (ours, theirs) =
            (Pages { layout: &layout, numerics_class: Some(&self.device.spec.numerics_class) }, task.pages());
        if ours.are_of_use(&theirs, &task.accepts) {
            return Ok(());
        }
        let text = format!("kv pages differ: ours are {ours}; theirs are {theirs}");
        Err(Fault::invalid("layout", text))
    }

    fn request(&self, envelope: &Envelope, task: &PrefillTask) -> Request {
        let scope =
            CacheScope { revision: &self.layout.revision, adapter: None, salt: task.cache_salt.as_deref() };
        Request {
            run: RunKey(task.run.0),
            goal: Goal::Blocks { from: task.held_blocks },
            prompt: task.prompt.iter().collect(),
            choices: vec![Choice { index: 0, output: Vec::new() }],
            params: SamplingParams::default(),
            max_tokens: 0,
            priority: task.priority,
            deadline: envelope.deadline_ms.map(|ms| Micros(ms.saturating_mul(1000))),
            root: self.key.root(&scope),
            score_prompt_from: None,
            arrived: Micros(0),
        }
    }

    /// Leading blocks of the prompt that the cache holds.
    fn cached_blocks(&self, request: &Request) -> u32 {
        let blocks = request.prompt.chunks_exact(self.layout.page_size as usize);
        let chain = blocks.scan(request.root, |parent, block| {
            *parent = self.key.child(*parent, block, &[]);
            Some(*parent)
        });
        self.cached.lock().leading(chain)
    }

    /// Gets slots for a task that is being computed and pushes its blocks into them.
    async fn serve(self: Arc<Self>, run: RunId, cached_blocks: u32) {
        let Some((decode, first, blocks)) = self.tasks.lock().wants(run) else { return };
        let layout = Some(self.layout.to_string());
        let want = PrefillNews::WantSlots { run, blocks, cached_blocks, layout };
        let Some(grant) = self.slots(run, &decode, want).await else { return };
        let Some(pieces) = self.tasks.lock().take_feed(run) else {
            self.tell(&decode, PrefillNews::Closed { epoch: grant.epoch.0 });
            return;
        };
        let epoch = grant.epoch.0;
        self.receivers.lock().insert(decode.clone(), grant.addresses.clone());
        let push = Push {
            run: RunKey(run.0),
            first,
            grant,
            layout: self.layout.clone(),
            pieces,
            device: self.device.clone(),
            transports: self.transports.clone(),
            rooms: self.rooms.clone(),
        };
        let began = Instant::now();
        let pushed = tokio::task::spawn_blocking(move || push.run()).await;
        let failed = match pushed {
            Ok(Ok(())) => {
                metrics::histogram!("stator_engine_push_seconds").record(began.elapsed());
                None
            }
            Ok(Err(PushError::Ended)) if !self.tasks.lock().knows(run) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panicked) => Some(panicked.to_string()),
        };
        if let Some(why) = failed {
            tracing::info!(%run, %decode, why, "blocks not pushed");
            self.tell(&decode, PrefillNews::Failed { run, fault: Fault::new(FaultCode::Internal, why) });
        }
        self.tell(&decode, PrefillNews::Closed { epoch });
        self.drop_task(run);
    }

    /// Asks for slots until there are some, or the task is no more.
    async fn slots(&self, run: RunId, decode: &InstanceId, want: PrefillNews) -> Option<Grant> {
        let want = Control::Prefill(want);
        while self.tasks.lock().knows(run) {
            match self.context.bus.ask(self.control_of(decode), None, &want, ACCEPT_WITHIN).await {
                Ok(SlotAnswer::Granted(grant)) => match codec::decode(&grant) {
                    Ok(grant) => return Some(grant),
                    Err(error) => {
                        self.fail(run, Fault::new(FaultCode::Internal, error.to_string()));
                        return None;
                    }
                },
                Ok(SlotAnswer::Refused(fault)) if !fault.retryable() => {
                    tracing::debug!(%run, %decode, %fault, "no slots");
                    self.drop_task(run);
                    return None;
                }
                Ok(SlotAnswer::Refused(_)) | Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
        None
    }

    /// Ends a task that cannot be done.
    fn fail(&self, run: RunId, fault: Fault) {
        let decode = self.tasks.lock().wants(run).map(|(decode, ..)| decode);
        if let Some(decode) = decode {
            self.tell(&decode, PrefillNews::Failed { run, fault });
        }
        self.drop_task(run);
    }

    /// Forgets a task; whoever pushes for it stops.
    fn drop_task(&self, run: RunId) {
        if !self.tasks.lock().remove(run) {
            return;
        }
        self.device.feeds.close(RunKey(run.0));
        let device = self.device.clone();
        tokio::spawn(
            async move { device.insist(Command::Cancel { run: RunKey(run.0), choice: None }).await },
        );
    }

    /// Lets go of the memory of a decode engine that is gone.
    fn forget(&self, decode: &InstanceId) {
        let Some(addresses) = self.receivers.lock().remove(decode) else { return };
        let transports = self.transports.clone();
        // Unmapping asks the device.
        tokio::task::spawn_blocking(move || transports.forget(&addresses));
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.lock().len() == 0
    }

    /// Gives all tasks up: decode engines compute what is left.
    pub fn hand_back(&self) {
        let all = self.tasks.lock().all();
        let fault = || Fault::new(FaultCode::Draining, "the engine went away");
        all.into_iter().for_each(|run| self.fail(run, fault()));
    }
}

impl Service for PrefillActor {
    type Body = PrefillTask;

    fn receive(&self, envelope: Envelope, task: PrefillTask, reply: Responder) {
        let answer = match self.admit(&envelope, &task) {
            Ok(estimate_ms) => {
                tracing::debug!(run = %task.run, label = envelope.label, "accepted");
                PrefillAnswer::Accepted { estimate_ms }
            }
            Err(fault) => {
                metrics::counter!("stator_engine_refusals_total").increment(1);
                tracing::debug!(run = %task.run, %fault, "refused");
                PrefillAnswer::Refused(fault)
            }
        };
        reply.send(&answer);
    }

    fn cancel(&self, cancel: Cancel) {
        self.tombstones.bury(&cancel);
        let meant = self.tasks.lock().meant_by(&cancel);
        meant.into_iter().for_each(|run| self.drop_task(run));
    }

    fn knows(&self, _: Option<RequestId>, run: Option<RunId>) -> bool {
        run.is_some_and(|run| self.tasks.lock().knows(run))
    }

    fn pulse(&self) -> Pulse {
        self.device.clock.pulse()
    }

    fn snapshot(&self, reply: Responder) {
        self.broadcast.snapshot(reply);
    }
}

/// The run of which an event says that blocks are computed.
fn computed(event: &Event) -> Option<RunId> {
    match event {
        Event::BlocksComputed { run, .. } => Some(RunId(run.0)),
        _ => None,
    }
}
