//! The router on the bus: takes requests into custody, and control messages.

mod dispatch;
mod explain;
mod hear;
mod snapshots;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actors::{
    Context,
    frames::Outbox,
    lane::{Responder, Service},
    suspects::Suspects,
    tombstones::Tombstones,
};
use messages::{
    Attempt, Envelope, Fault, FaultCode, InstanceId, Pool, RequestId, Role, RunId,
    block::ClusterKey,
    control::{Cancel, Control},
    frame::{Body, Frame, TextDelta},
    lease::{Lease, State},
    subject,
    submit::{Custody, Submit},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    decisions::{Fate, Ledger, Notes, Recorder},
    deployment::{Deployment, Turn},
    deployments::Deployments,
    held::Held,
    queue::Claim,
    settings::RouterSettings,
};

/// When a refused client may try again.
const RETRY_AFTER_MS: u32 = 1000;
/// Output tokens that a request's share is charged for at most: few answers are as long as they may be.
const CHARGED_OUTPUT: u32 = 512;

pub struct RouterActor {
    context: Context,
    settings: RouterSettings,
    key: ClusterKey,
    deployments: Deployments,
    /// Number of the last dispatch.
    dispatches: AtomicU64,
    ledger: Mutex<Ledger>,
    meters: explain::Meters,
    notes: Mutex<Notes>,
    recorder: Option<Recorder>,
    /// Snapshots of caches on their way.
    snapshots: Semaphore,
    held: Mutex<Held>,
    /// What is held is given back.
    leaving: CancellationToken,
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
    deployment: Arc<Deployment>,
}

impl RouterActor {
    /// # Errors
    /// If decisions are to be recorded and cannot be.
    pub fn new(context: Context, settings: RouterSettings, key: ClusterKey) -> anyhow::Result<Arc<Self>> {
        let outbox = Outbox::new(context.bus.clone(), context.me.instance.clone(), Role::Router);
        let meters = explain::Meters::of(settings.policy);
        let recorder = settings.record_decisions.as_deref().map(Recorder::open).transpose()?;
        Ok(Arc::new_cyclic(|itself| Self {
            context,
            deployments: Deployments::new(settings.clone()),
            settings,
            key,
            dispatches: AtomicU64::new(0),
            ledger: Mutex::default(),
            meters,
            notes: Mutex::default(),
            recorder,
            snapshots: Semaphore::new(snapshots::AT_ONCE),
            held: Mutex::default(),
            leaving: CancellationToken::new(),
            suspects: Suspects::default(),
            tombstones: Tombstones::default(),
            outbox,
            runtime: tokio::runtime::Handle::current(),
            itself: itself.clone(),
        }))
    }

    /// Heartbeats for what is held, slow duties, and the consequences of departures.
    pub async fn keep(self: Arc<Self>) {
        let beat = || {
            let alive = self.held.lock().alive();
            self.outbox.beat(alive, None);
            self.upkeep();
        };
        let departed = |lease: &Arc<Lease>| {
            if lease.role == Role::Ingress {
                self.held.lock().cancel_of(&lease.instance);
            }
        };
        self.context.keep(beat, departed).await;
    }

    fn upkeep(&self) {
        let now = Instant::now();
        for deployment in self.deployments.all() {
            deployment.lock().fleets_mut().into_iter().for_each(|fleet| fleet.upkeep(now));
        }
        metrics::gauge!("stator_router_held").set(self.held.lock().len() as f64);
        self.gauge_deployments();
    }

    fn gauge_deployments(&self) {
        let (mut blocks, mut unknown, mut queued) = (0, 0, 0);
        for deployment in self.deployments.all() {
            let mut state = deployment.lock();
            queued += state.queued();
            for fleet in state.fleets_mut() {
                blocks += fleet.index().blocks();
                unknown += fleet.unknown();
            }
        }
        metrics::gauge!("stator_router_queued").set(queued as f64);
        metrics::gauge!("stator_router_index_blocks").set(blocks as f64);
        metrics::gauge!("stator_router_unknown_caches").set(unknown as f64);
    }

    /// Gives back what is held: its holders try elsewhere.
    pub fn hand_back(&self) {
        self.leaving.cancel();
    }

    pub fn is_idle(&self) -> bool {
        self.held.lock().len() == 0
    }

    fn next_dispatch(&self) -> u64 {
        self.dispatches.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn take(&self, envelope: &Envelope, submit: &Submit) -> Result<(CancellationToken, Turn), Fault> {
        if self.context.life.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "the router is draining"));
        }
        if let Some(pin) = submit.routing.pin.as_ref().filter(|_| envelope.attempt == Attempt::FIRST) {
            self.check_pin(pin, &submit.pool)?;
        }
        // A cancel is buried before it looks for what is held.
        let mut held = self.held.lock();
        if self.tombstones.meets(envelope.request, envelope.attempt, None) {
            return Err(Fault::new(FaultCode::Cancelled, "the request was cancelled"));
        }
        let limit = self.settings.max_held_requests;
        if held.len() >= limit {
            let text = format!("the router holds {} requests, the limit is {limit}", held.len());
            return Err(Fault::new(FaultCode::Overloaded, text).retry_after(RETRY_AFTER_MS));
        }
        let turn = self.turn(envelope, submit)?;
        let cancelled = held
            .take(envelope.request, envelope.attempt, &submit.ingress)
            .ok_or_else(|| Fault::new(FaultCode::Cancelled, "this attempt is held here already"))?;
        Ok((cancelled, turn))
    }

    /// Ids are drawn at each start: one that no lease has will not come. Who knows no engine at all cannot tell.
    fn check_pin(&self, pin: &InstanceId, pool: &Pool) -> Result<(), Fault> {
        if self.deployments.of(pool).lock().decode.is_empty() {
            return Ok(());
        }
        let lease = self.context.directory.lease(pin);
        let may_serve = lease.is_some_and(|lease| {
            lease.role == Role::Decode && lease.pool == *pool && lease.state != State::Draining
        });
        if may_serve {
            return Ok(());
        }
        let text =
            format!("'{pin}' is no decode instance that serves this model: `stator drain` lists those alive");
        Err(Fault::invalid("x-stator-instance", text))
    }

    fn turn(&self, envelope: &Envelope, submit: &Submit) -> Result<Turn, Fault> {
        let deployment = self.deployments.of(&submit.pool);
        if !self.queues(submit) {
            return Ok(Turn::Now(deployment.at_once()));
        }
        // It has waited before.
        if envelope.attempt > Attempt::FIRST {
            return Ok(deployment.enter_again());
        }
        let prompt = u32::try_from(submit.prompt.len()).unwrap_or(u32::MAX);
        deployment.enter(Claim {
            priority: submit.priority,
            tenant: submit.routing.tenant.clone().unwrap_or_default(),
            tokens: prompt.saturating_add(submit.max_tokens.min(CHARGED_OUTPUT)),
        })
    }

    fn say(&self, envelope: &Envelope, ingress: &InstanceId, run: Option<RunId>, body: Body<TextDelta>) {
        let (request, attempt) = (envelope.request, envelope.attempt);
        self.outbox.push(ingress, Frame { request, attempt, run, body });
        self.outbox.flush(0, None);
    }

    /// A dispatch may have been on its way when the cancel came: the engine that took it is not known.
    fn cancel_at_engines(&self, envelope: &Envelope, submit: &Submit) {
        let cancel = Cancel { request: envelope.request, attempt: envelope.attempt, run: None, choice: None };
        let subject = subject::pool_control(self.context.bus.namespace(), Role::Decode, &submit.pool);
        let _ = self.context.bus.tell(subject, None, &Control::Cancel(cancel));
    }
}

impl Service for RouterActor {
    type Body = Submit;

    fn receive(&self, envelope: Envelope, submit: Submit, reply: Responder) {
        let (cancelled, turn) = match self.take(&envelope, &submit) {
            Ok(taken) => taken,
            Err(fault) => {
                metrics::counter!("stator_router_refusals_total").increment(1);
                if fault.code != FaultCode::Cancelled {
                    self.note(&envelope, &submit, Fate::Refused, Duration::ZERO, Some(fault.clone()));
                }
                return reply.send(&Custody::Refused(fault));
            }
        };
        let instance = self.context.me.instance.clone();
        reply.send(&Custody::Accepted { instance: instance.clone() });
        let accepted = Body::Accepted { instance, role: Role::Router, prefill: None };
        self.say(&envelope, &submit.ingress, None, accepted);
        let Some(itself) = self.itself.upgrade() else { return };
        let deployment = self.deployments.of(&submit.pool);
        let job = Job { envelope, submit, taken: Instant::now(), cancelled, deployment };
        self.context.tasks.spawn_on(itself.route(job, turn), &self.runtime);
    }

    fn cancel(&self, cancel: Cancel) {
        self.tombstones.bury(&cancel);
        self.held.lock().cancel(&cancel);
    }

    fn knows(&self, request: Option<RequestId>, _: Option<RunId>) -> bool {
        request.is_some_and(|request| self.held.lock().holds(request))
    }
}
