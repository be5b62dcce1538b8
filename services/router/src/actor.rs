use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{
    Context,
    custody::hand_over,
    frames::{HEARTBEAT, Outbox},
    lane::{Responder, Service},
    suspects::Suspects,
    tombstones::Tombstones,
};
use futures_util::StreamExt;
use messages::{
    Envelope, Fault, FaultCode, InstanceId, Role, RunId, codec,
    control::{Cancel, Control, Pong},
    frame::{Body, Frame, Pulse, TextDelta},
    lease::State,
    subject,
    submit::{Custody, Submit},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    choose::{Chooser, Doubts},
    held::Held,
    loads::Loads,
    settings::RouterSettings,
};

/// How long engines that refuse or do not answer are tried before the request fails.
const DISPATCH_WITHIN: Duration = Duration::from_secs(5);
/// When a refused client may try again.
const RETRY_AFTER_MS: u32 = 1000;

pub struct RouterActor {
    context: Context,
    settings: RouterSettings,
    chooser: Chooser,
    loads: Mutex<Loads>,
    held: Mutex<Held>,
    suspects: Suspects,
    tombstones: Tombstones,
    outbox: Outbox<TextDelta>,
    /// Handle of the many-threaded runtime: lanes call in from there.
    runtime: tokio::runtime::Handle,
    itself: std::sync::Weak<Self>,
}

/// A request in this router's custody.
struct Job {
    envelope: Envelope,
    submit: Submit,
    taken: Instant,
    cancelled: CancellationToken,
}

impl RouterActor {
    pub fn new(context: Context, settings: RouterSettings) -> Arc<Self> {
        let outbox = Outbox::new(context.bus.clone(), context.me.instance.clone(), Role::Router);
        Arc::new_cyclic(|itself| Self {
            chooser: Chooser::new(settings.policy),
            context,
            settings,
            loads: Mutex::default(),
            held: Mutex::default(),
            suspects: Suspects::default(),
            tombstones: Tombstones::default(),
            outbox,
            runtime: tokio::runtime::Handle::current(),
            itself: itself.clone(),
        })
    }

    /// Listens to what engines say of their load.
    pub async fn hear_loads(self: Arc<Self>) -> anyhow::Result<()> {
        let mut reports = self.context.bus.listen(subject::all_loads(self.context.bus.namespace())).await?;
        tokio::spawn(async move {
            while let Some(message) = reports.next().await {
                match codec::decode(&message.payload) {
                    Ok(load) => self.loads.lock().heard(load, Instant::now()),
                    Err(error) => tracing::warn!(%error, "load report ignored"),
                }
            }
        });
        Ok(())
    }

    /// Heartbeats for what is held, and the consequences of departures.
    pub async fn keep(self: Arc<Self>) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        let mut departures = self.context.directory.departures();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let (alive, held) = {
                        let held = self.held.lock();
                        (held.alive(), held.len())
                    };
                    metrics::gauge!("stator_router_held").set(held as f64);
                    self.outbox.beat(alive, None);
                }
                Ok(lease) = departures.recv() => match lease.role {
                    Role::Ingress => self.held.lock().cancel_of(&lease.instance),
                    _ => self.loads.lock().departed(&lease.instance),
                },
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.held.lock().len() == 0
    }

    fn take(&self, envelope: &Envelope, submit: &Submit) -> Result<CancellationToken, Fault> {
        if self.context.life.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "the router is draining"));
        }
        if self.tombstones.meets(envelope.request, envelope.attempt, None) {
            return Err(Fault::new(FaultCode::Cancelled, "the request was cancelled"));
        }
        let mut held = self.held.lock();
        let limit = self.settings.max_held_requests;
        if held.len() >= limit {
            let text = format!("the router holds {} requests, the limit is {limit}", held.len());
            return Err(Fault::new(FaultCode::Overloaded, text).retry_after(RETRY_AFTER_MS));
        }
        held.take(envelope.request, envelope.attempt, &submit.ingress)
            .ok_or_else(|| Fault::new(FaultCode::Cancelled, "this attempt is held here already"))
    }

    async fn route(self: Arc<Self>, job: Job) {
        let outcome = tokio::select! {
            outcome = self.dispatch(&job) => outcome,
            () = job.cancelled.cancelled() => Err(Fault::new(FaultCode::Cancelled, "the request was cancelled")),
        };
        let Job { envelope, submit, taken, .. } = job;
        self.held.lock().release(envelope.request, envelope.attempt);
        metrics::histogram!("stator_router_held_seconds").record(taken.elapsed().as_secs_f64());
        let outcome_name = match outcome {
            Ok(engine) => {
                tracing::debug!(request = %envelope.request, label = envelope.label, %engine, "dispatched");
                "dispatched"
            }
            Err(Fault { code: FaultCode::Cancelled, .. }) => {
                self.cancel_at_engines(&envelope, &submit);
                "cancelled"
            }
            Err(fault) => {
                tracing::debug!(request = %envelope.request, %fault, "not dispatched");
                self.say(&envelope, &submit.ingress, Body::Failed(fault));
                "failed"
            }
        };
        metrics::counter!("stator_router_requests_total", "outcome" => outcome_name).increment(1);
    }

    async fn dispatch(&self, job: &Job) -> Result<InstanceId, Fault> {
        let hold_until = job.taken + Duration::from_secs(self.settings.hold_when_empty);
        let deadline = job.envelope.deadline_ms.map(|ms| job.taken + Duration::from_millis(ms));
        loop {
            let until = deadline.map_or(hold_until, |deadline| hold_until.min(deadline));
            self.wait_for_engines(&job.submit, until).await?;
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Fault::new(
                    FaultCode::DeadlineExceeded,
                    "the deadline passed before an engine was found",
                ));
            }
            match self.offer(job, deadline).await {
                // Whoever was alive has vanished meanwhile: hold on.
                Err(Fault { code: FaultCode::NoInstance, .. }) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn offer(&self, job: &Job, deadline: Option<Instant>) -> Result<InstanceId, Fault> {
        let bus = &self.context.bus;
        let give_up = Instant::now() + DISPATCH_WITHIN;
        let give_up = deadline.map_or(give_up, |deadline| give_up.min(deadline));
        let mut envelope = job.envelope.clone();
        envelope.deadline_ms =
            job.envelope.deadline_ms.map(|ms| ms.saturating_sub(millis(job.taken.elapsed())));
        let mut submit = job.submit.clone();
        let choose = |tried: &[InstanceId]| {
            let live = self.engines(&job.submit);
            let doubts = Doubts { suspects: &self.suspects, avoid: &job.submit.avoid, tried };
            let chosen = self.chooser.choose(&live, &self.loads.lock(), &doubts)?;
            self.loads.lock().dispatched(&chosen);
            Some(chosen)
        };
        let message = |engine: &InstanceId| {
            submit.run = Some(RunId::draw());
            let subject = subject::instance_requests(bus.namespace(), Role::Decode, &submit.pool, engine);
            (subject, codec::encode(&submit))
        };
        hand_over(bus, &self.suspects, &envelope, give_up, choose, message).await
    }

    fn engines(&self, submit: &Submit) -> Vec<InstanceId> {
        let live = self.context.directory.instances(Role::Decode, &submit.pool);
        live.iter().map(|lease| lease.instance.clone()).collect()
    }

    async fn wait_for_engines(&self, submit: &Submit, until: Instant) -> Result<(), Fault> {
        let mut changed = self.context.directory.changed();
        while self.engines(submit).is_empty() {
            let fault = Fault::new(FaultCode::NoInstance, "no engine of this model is alive")
                .retry_after(RETRY_AFTER_MS);
            match tokio::time::timeout_at(until.into(), changed.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(fault),
            }
        }
        Ok(())
    }

    /// A dispatch may have been on its way when the cancel came: the engine that took it is not known.
    fn cancel_at_engines(&self, envelope: &Envelope, submit: &Submit) {
        let cancel = Cancel { request: envelope.request, attempt: envelope.attempt, run: None, choice: None };
        let subject = subject::pool_control(self.context.bus.namespace(), Role::Decode, &submit.pool);
        let _ = self.context.bus.tell(subject, None, &Control::Cancel(cancel));
    }

    fn say(&self, envelope: &Envelope, ingress: &InstanceId, body: Body<TextDelta>) {
        let (request, attempt) = (envelope.request, envelope.attempt);
        self.outbox.push(ingress, Frame { request, attempt, run: None, body });
        self.outbox.flush(0, None);
    }

    fn cancel(&self, cancel: &Cancel) {
        self.tombstones.bury(cancel);
        self.held.lock().cancel(cancel);
    }
}

impl Service for RouterActor {
    type Body = Submit;

    fn receive(&self, envelope: Envelope, submit: Submit, reply: Responder) {
        let cancelled = match self.take(&envelope, &submit) {
            Ok(cancelled) => cancelled,
            Err(fault) => {
                metrics::counter!("stator_router_refusals_total").increment(1);
                return reply.send(&Custody::Refused(fault));
            }
        };
        let instance = self.context.me.instance.clone();
        reply.send(&Custody::Accepted { instance: instance.clone() });
        self.say(&envelope, &submit.ingress, Body::Accepted { instance, role: Role::Router });
        let Some(itself) = self.itself.upgrade() else { return };
        let job = Job { envelope, submit, taken: Instant::now(), cancelled };
        self.context.tasks.spawn_on(itself.route(job), &self.runtime);
    }

    fn control(&self, control: Control, reply: Responder) {
        match control {
            Control::Cancel(cancel) => self.cancel(&cancel),
            Control::Ping { request, .. } => {
                let draining = self.context.life.is_draining();
                let state = if draining { State::Draining } else { State::Ready };
                let knows_run = request.is_some_and(|request| self.held.lock().holds(request));
                let instance = self.context.me.instance.clone();
                reply.send(&Pong { instance, state, pulse: Pulse::default(), knows_run });
            }
            // Routers hold no run and are drained by their lane.
            Control::Attach(_) | Control::KvSnapshot {} | Control::Prefill(_) | Control::Drain { .. } => {}
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
