//! Prompts of this engine that prefill engines compute: asks for them, lends slots, lets their blocks land, and takes
//! them back when that is better.

mod entry;
mod shunned;
mod slots;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{Context, bus::AskError, custody::ACCEPT_WITHIN, lane::Responder};
use kv::transfer::{Epoch, Event, GrantEnd, GrantError};
use messages::{
    Envelope, Fault, FaultCode, InstanceId, Role, RunId, codec,
    control::{Cancel, Control},
    lease::Lease,
    prefill::{PrefillAnswer, PrefillNews, PrefillTask, SlotAnswer, TaskPulse},
    subject,
    submit::Submit,
};
use parking_lot::Mutex;
use scheduler::{Landing, RunKey};
use tokio::sync::mpsc;

use crate::{
    device::{Command, Copy, Device},
    handover::{Here, News, Verdict, Why},
};
use entry::Entry;
use shunned::Shunned;
use slots::Slots;

/// How often silence is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct Remote {
    context: Context,
    device: Device,
    slots: Slots,
    /// Layouts of pages that are taken whoever computed them.
    accepts: Vec<String>,
    entries: Mutex<HashMap<RunId, Entry>>,
    shunned: Mutex<Shunned>,
}

impl Remote {
    /// Begins to lend slots of `config` over `transports`. Pages of the layouts in `accepts`, all of which `config` knows, are
    /// taken from engines of any numerics class.
    ///
    /// # Errors
    /// If memory or an address cannot be had.
    pub fn start(
        context: Context,
        device: Device,
        config: kv::transfer::ReceiverConfig,
        accepts: Vec<String>,
        transports: &kv::transfer::Transports,
    ) -> anyhow::Result<Arc<Self>> {
        // Every page that waits here fills a slot, and every grant that ends had one: there is always room.
        let (landed, events) = mpsc::channel(2 * config.slots as usize);
        let on_event = move |event| drop(landed.try_send(event));
        let slots = Slots::start(config, transports, device.memory.as_deref(), on_event)?;
        let (entries, shunned) = (Mutex::default(), Mutex::default());
        let remote = Arc::new(Self { context, device, slots, accepts, entries, shunned });
        tokio::spawn(remote.clone().follow(events));
        tokio::spawn(remote.clone().watch());
        Ok(remote)
    }

    /// The prefill engine that a submission names, if it can be of use.
    pub fn helper(&self, submit: &Submit) -> Option<InstanceId> {
        let page = self.device.spec.page_size as usize;
        let helps = submit.score_prompt_from.is_none() && submit.prompt.len() > page;
        let named = submit.prefill.clone().filter(|_| helps)?;
        (!self.shunned.lock().contains(&named, Instant::now())).then_some(named)
    }

    /// Whether a prefill engine lives that can be asked: its pages are of use here and it is not shunned.
    pub fn has_help(&self) -> bool {
        let Some(own) = self.context.directory.lease(&self.context.me.instance) else { return false };
        let prefills = self.context.directory.instances(Role::Prefill, &self.context.me.pool);
        let useful = prefills.iter().filter(|lease| own.takes_pages_of(lease));
        self.shunned.lock().leave_any(useful.map(|lease| &lease.instance), Instant::now())
    }

    /// The prefill engines that are not asked at present.
    pub fn shunned(&self) -> Vec<InstanceId> {
        self.shunned.lock().all(Instant::now())
    }

    /// Notes a run whose prompt `prefill` is to compute, before the device hears of it.
    pub fn expect(&self, run: RunId, envelope: &Envelope, submit: &Submit, prefill: InstanceId) {
        let task = PrefillTask {
            run,
            prompt: submit.prompt.clone(),
            cache_salt: submit.cache_salt.clone(),
            held_blocks: 0,
            priority: submit.priority,
            decode: self.context.me.instance.clone(),
            dispatch: submit.dispatch.clone(),
            layout: self.slots.layout().to_string(),
            numerics_class: self.device.spec.numerics_class.clone(),
            accepts: self.accepts.clone(),
        };
        let patience = Duration::from_millis(submit.prefill_patience_ms.into());
        self.entries.lock().insert(run, Entry::new(envelope, prefill, task, patience));
    }

    /// The run waits for these blocks: asks for them.
    pub fn waits(self: &Arc<Self>, run: RunId, held: u32, wanted: u32) {
        self.hear(run, News::Asked { held, wanted });
        let page_size = self.device.spec.page_size;
        let asked = self.entries.lock().get(&run).map(|entry| entry.task(held, wanted * page_size));
        let Some((prefill, envelope, task)) = asked else {
            // Taken back before it was parked, when there was nothing to go on with yet.
            return self.command(Command::Copy(Copy::GoOn(RunKey(run.0))));
        };
        let remote = self.clone();
        tokio::spawn(async move {
            let me = &remote.context.me;
            let to =
                subject::instance_requests(remote.context.bus.namespace(), Role::Prefill, &me.pool, &prefill);
            let news = match remote.context.bus.ask(to, Some(&envelope), &task, ACCEPT_WITHIN).await {
                Ok(PrefillAnswer::Accepted { estimate_ms }) => {
                    News::Going { remaining: Duration::from_millis(estimate_ms.into()) }
                }
                Ok(PrefillAnswer::Refused(fault)) => {
                    tracing::debug!(%run, %prefill, %fault, "prefill refused");
                    News::Broken(Why::Refused)
                }
                Err(AskError::NoResponders(_)) => News::Broken(Why::Gone),
                Err(_) => News::Broken(Why::Unanswered),
            };
            remote.hear(run, news);
        });
    }

    /// What a prefill engine says.
    pub fn news(&self, news: PrefillNews, reply: Responder) {
        match news {
            PrefillNews::Pulse { tasks } => {
                for TaskPulse { run, remaining_ms } in tasks {
                    self.hear(run, News::Going { remaining: Duration::from_millis(remaining_ms.into()) });
                }
            }
            PrefillNews::WantSlots { run, blocks, layout, .. } => {
                reply.send(&self.lend(run, blocks, layout));
            }
            PrefillNews::Failed { run, fault } => {
                tracing::info!(%run, %fault, "prefill failed");
                self.hear(run, News::Broken(shunned::meaning(&fault)));
            }
            PrefillNews::Closed { epoch } => self.slots.closed(Epoch(epoch)),
        }
    }

    /// Lends slots for blocks laid out as `layout`, or as here.
    fn lend(&self, run: RunId, blocks: u32, layout: Option<String>) -> SlotAnswer {
        let layout = layout.unwrap_or_else(|| self.slots.layout().to_string());
        let answer = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(&run).filter(|entry| entry.handover.missing() == blocks) else {
                let text = "nobody waits for these blocks";
                return SlotAnswer::Refused(Fault::new(FaultCode::Cancelled, text));
            };
            // Asked again, because the answer was lost: the same slots.
            match &entry.grant {
                Some(grant) => Ok(codec::encode(grant)),
                None => self.slots.lend(run, blocks, &layout, &entry.prefill).map(|grant| {
                    let encoded = codec::encode(&grant);
                    entry.grant = Some(grant);
                    encoded
                }),
            }
        };
        self.hear(run, News::Slots { lent: answer.is_ok() });
        match answer {
            Ok(grant) => SlotAnswer::Granted(grant),
            Err(GrantError::Layout) => {
                let text = format!("kv pages differ: ours are {}; theirs are {layout}", self.slots.layout());
                SlotAnswer::Refused(Fault::invalid("layout", text))
            }
            Err(error) => SlotAnswer::Refused(Fault::new(FaultCode::Overloaded, error.to_string())),
        }
    }

    /// The device was offered a block that had landed.
    pub fn landed(&self, run: RunId, landing: Landing) {
        self.hear(run, News::Landed(landing));
    }

    /// The run has ended, in whatever way: nothing is waited for any more.
    pub fn ended(&self, run: RunId) {
        let Some(entry) = self.entries.lock().remove(&run) else { return };
        tracing::debug!(%run, "run ended while it waited for its prompt");
        self.outcome(&entry, "cancelled");
        self.call_off(run, entry);
    }

    /// An instance is gone.
    pub fn departed(&self, lease: &Arc<Lease>) {
        if lease.role != Role::Prefill {
            return;
        }
        let of = |(run, entry): (&RunId, &Entry)| (entry.prefill == lease.instance).then_some(*run);
        let runs: Vec<RunId> = self.entries.lock().iter().filter_map(of).collect();
        runs.into_iter().for_each(|run| self.hear(run, News::Broken(Why::Gone)));
        self.slots.departed(lease.clone());
    }

    /// Lets pages land in the order of their blocks.
    async fn follow(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Landed(page) => {
                    let Some(run) = self.slots.run_of(page.epoch()) else { continue };
                    metrics::counter!("stator_kv_transfer_bytes_total", "direction" => "in")
                        .increment(self.slots.layout().page_bytes());
                    let ready = match self.entries.lock().get_mut(&run) {
                        Some(entry) => entry.in_order(page),
                        None => continue,
                    };
                    for (block, page) in ready {
                        self.hear(run, News::Came);
                        let land = Copy::Land { run: RunKey(run.0), block, page };
                        self.device.insist(Command::Copy(land)).await;
                    }
                }
                Event::Ended { epoch, end: GrantEnd::Finished } => {
                    let Some(run) = self.slots.forget(epoch) else { continue };
                    let grant = |entry: &Entry| entry.grant.as_ref().map_or(0, |grant| grant.pages);
                    let blocks = self.entries.lock().get(&run).map_or(0, grant);
                    self.hear(run, News::Arrived { blocks });
                }
                Event::Ended { epoch, end } => {
                    let Some(run) = self.slots.forget(epoch) else { continue };
                    tracing::debug!(%run, ?end, "transfer ended early");
                    self.hear(run, News::Broken(Why::TransferBroke));
                }
            }
        }
    }

    async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let runs: Vec<RunId> = self.entries.lock().keys().copied().collect();
            runs.into_iter().for_each(|run| self.hear(run, News::Tick));
            let host =
                self.context.directory.lease(&self.context.me.instance).map(|lease| lease.host.clone());
            self.slots.look(host.as_deref());
        }
    }

    /// Tells a hand-over the news and does what follows from them.
    fn hear(&self, run: RunId, news: News) {
        let entry = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(&run) else { return };
            let here = self.here(entry.handover.left(), entry.patience);
            let outcome = match entry.handover.hear(news, here, Instant::now()) {
                Verdict::Wait => return,
                Verdict::Done => None,
                Verdict::TakeBack(why) => Some(why),
            };
            entries.remove(&run).map(|entry| (entry, outcome))
        };
        let Some((entry, outcome)) = entry else { return };
        self.outcome(&entry, outcome.map_or("done", Why::label));
        metrics::histogram!("stator_engine_handover_seconds").record(entry.handover.began.elapsed());
        if let Some(why) = outcome {
            tracing::info!(%run, prefill = %entry.prefill, why = why.label(), "prompt taken back");
            self.judge(&entry, why);
            self.call_off(run, entry);
        }
        // Where the last block has landed this says nothing new.
        self.command(Command::Copy(Copy::GoOn(RunKey(run.0))));
    }

    /// Asks nothing for a while of who let a prompt down, unless that may be the fault of this engine.
    fn judge(&self, entry: &Entry, why: Why) {
        if self.context.bus.cut_off().is_some() || entry.handover.is_behind() {
            return;
        }
        let Some(time) = shunned::after(why) else { return };
        if self.shunned.lock().add(&entry.prefill, time, Instant::now()) {
            tracing::warn!(prefill = %entry.prefill, why = why.label(), ?time, "prefill engine shunned");
        }
    }

    /// What computing that many blocks here would take; unknown while nothing was measured. `patience`: how much later
    /// the prompt may be elsewhere if that spares sequences that decode here.
    fn here(&self, blocks: u32, patience: Duration) -> Option<Here> {
        let load = self.device.load();
        let tokens = load.pending_prefill_tokens + u64::from(blocks) * u64::from(self.device.spec.page_size);
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let takes = load.prefill_token_time.saturating_mul(tokens);
        let patience = if load.running > 0 { patience } else { Duration::ZERO };
        (!takes.is_zero()).then_some(Here { takes, patience })
    }

    /// Takes slots back and tells the prefill engine to stop.
    fn call_off(&self, run: RunId, entry: Entry) {
        if let Some(grant) = &entry.grant {
            self.slots.revoke(grant.epoch);
        }
        let (request, attempt) = (entry.envelope.request, entry.envelope.attempt);
        let cancel = Control::Cancel(Cancel { request, attempt, run: Some(run), choice: None });
        let me = &self.context.me;
        let to =
            subject::instance_control(self.context.bus.namespace(), Role::Prefill, &me.pool, &entry.prefill);
        let _ = self.context.bus.tell(to, None, &cancel);
    }

    fn outcome(&self, entry: &Entry, outcome: &'static str) {
        tracing::debug!(run = %entry.run, prefill = %entry.prefill, outcome, "hand-over ended");
        metrics::counter!("stator_engine_remote_prefills_total", "outcome" => outcome).increment(1);
    }

    fn command(&self, command: Command) {
        if let Err(refused) = self.device.command(command) {
            let device = self.device.clone();
            tokio::spawn(async move { device.insist(refused.0).await });
        }
    }
}
