//! The tokenizer on the bus: takes requests, hands tokens to a router, turns token frames into text frames.

mod intake;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use actors::{
    Context,
    frames::{FrameSink, HEARTBEAT, Outbox},
    lane::{Responder, Service},
    suspects::Suspects,
    tombstones::Tombstones,
};
use messages::{
    Envelope, Fault, FaultCode, InstanceId, RequestId, Role, RunId,
    control::{Attach, Attached, Cancel, Control},
    frame::{Batch, TextDelta, TokenDelta},
    generate::ToTokenizer,
    lease::Lease,
    subject,
    submit::Custody,
    text::Answer,
};
use parking_lot::Mutex;

use crate::{
    model::Model,
    requests::{Action, Engine, Requests},
    settings::TokenizerSettings,
    workers::{Full, Workers},
};
use intake::Job;

/// When a refused client may try again.
const RETRY_AFTER_MS: u32 = 1000;
/// An attach that is not answered by then is asked for again later.
const ATTACH_WITHIN: Duration = Duration::from_millis(500);

pub struct TokenizerActor {
    context: Context,
    model: Model,
    requests: Mutex<Requests>,
    outbox: Outbox<TextDelta>,
    suspects: Suspects,
    tombstones: Tombstones,
    workers: OnceLock<Workers<Job>>,
    /// Counts dispatches, so that routers take turns.
    turn: std::sync::atomic::AtomicUsize,
    /// Handle of the many-threaded runtime: compute threads and lanes call in from elsewhere.
    runtime: tokio::runtime::Handle,
    itself: Weak<Self>,
}

impl TokenizerActor {
    /// # Errors
    /// If the compute threads cannot be started.
    pub fn start(context: Context, model: Model, settings: &TokenizerSettings) -> std::io::Result<Arc<Self>> {
        let me = context.me.instance.clone();
        let actor = Arc::new_cyclic(|itself: &Weak<Self>| Self {
            outbox: Outbox::new(context.bus.clone(), me.clone(), Role::Tokenizer),
            requests: Mutex::new(Requests::new(me)),
            model,
            suspects: Suspects::default(),
            tombstones: Tombstones::default(),
            workers: OnceLock::new(),
            turn: std::sync::atomic::AtomicUsize::new(0),
            runtime: tokio::runtime::Handle::current(),
            itself: itself.clone(),
            context,
        });
        let weak = Arc::downgrade(&actor);
        let workers =
            Workers::start(settings.tokenizer_worker_num, settings.max_queued_prompts, move |job, words| {
                if let Some(actor) = weak.upgrade() {
                    actor.work(job, words);
                }
            })?;
        actor.workers.get_or_init(|| workers);
        Ok(actor)
    }

    /// Keeps the slow duties: heartbeats, and the consequences of departures.
    pub async fn keep(self: Arc<Self>) {
        let departed = |lease: &Arc<Lease>| {
            if lease.role != Role::Ingress {
                return;
            }
            let dropped = self.requests.lock().ingress_departed(&lease.instance);
            if dropped > 0 {
                tracing::info!(ingress = %lease.instance, requests = dropped, "ingress is gone, its requests are dropped");
            }
        };
        self.context.keep(|| self.beat(), departed).await;
    }

    fn beat(&self) {
        let now = Instant::now();
        let mut actions = Vec::new();
        let alive = {
            let mut requests = self.requests.lock();
            metrics::gauge!("stator_tokenizer_requests_live").set(requests.len() as f64);
            match now.checked_sub(HEARTBEAT) {
                Some(silent_since) => requests.beat(silent_since, now, &mut actions),
                None => HashMap::new(),
            }
        };
        self.perform(actions);
        self.outbox.beat(alive, None);
    }

    pub fn is_idle(&self) -> bool {
        self.requests.lock().is_empty()
    }

    fn perform(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Say { to, frame } => self.outbox.push(&to, frame),
                Action::Cancel { at, cancel } => self.command(&at, &Control::Cancel(cancel)),
                Action::Attach { at, attach } => self.attach(at, attach),
            }
        }
    }

    fn control_subject(&self, engine: &Engine) -> String {
        let (ns, pool) = (self.context.bus.namespace(), &self.context.me.pool);
        subject::instance_control(ns, engine.role, pool, &engine.instance)
    }

    fn command(&self, engine: &Engine, control: &Control) {
        if let Err(error) = self.context.bus.tell(self.control_subject(engine), None, control) {
            tracing::warn!(engine = %engine.instance, %error, "control message not sent");
        }
    }

    fn attach(&self, engine: Engine, attach: Attach) {
        let Some(itself) = self.itself.upgrade() else { return };
        self.runtime.spawn(async move {
            tracing::debug!(request = %attach.request, run = %attach.run, engine = %engine.instance, "attach");
            let subject = itself.control_subject(&engine);
            let control = Control::Attach(attach.clone());
            let answer = itself.context.bus.ask::<_, Attached>(subject, None, &control, ATTACH_WITHIN).await;
            let known = match answer {
                Ok(Attached { known }) => Some(known),
                Err(error) => {
                    tracing::debug!(request = %attach.request, %error, "attach not answered");
                    None
                }
            };
            let mut actions = Vec::new();
            itself.requests.lock().attached(&attach, known, &mut actions);
            itself.perform(actions);
            itself.outbox.flush(0, None);
        });
    }

    fn give(&self, job: Job) -> Result<(), Full<Job>> {
        match self.workers.get() {
            Some(workers) => workers.give(job),
            None => Err(Full(job)),
        }
    }
}

impl Service for TokenizerActor {
    type Body = ToTokenizer;

    fn receive(&self, envelope: Envelope, body: ToTokenizer, reply: Responder) {
        let generate = match body {
            ToTokenizer::Generate(generate) => generate,
            ToTokenizer::Tokenize(request) => return self.answer(Job::Tokenize(Box::new(request), reply)),
            ToTokenizer::Detokenize(request) => return self.answer(Job::Detokenize(request, reply)),
        };
        let (request, label) = (envelope.request, envelope.label.clone());
        match self.admit(envelope, *generate) {
            Ok(()) => {
                tracing::debug!(%request, label, "accepted");
                reply.send(&Custody::Accepted { instance: self.context.me.instance.clone() });
            }
            Err(fault) => {
                metrics::counter!("stator_tokenizer_refusals_total").increment(1);
                tracing::debug!(%request, label, %fault, "refused");
                reply.send(&Custody::Refused(fault));
            }
        }
    }

    fn cancel(&self, cancel: Cancel) {
        self.tombstones.bury(&cancel);
        if self.requests.lock().cancel(&cancel) {
            metrics::counter!("stator_tokenizer_requests_total", "outcome" => "cancelled").increment(1);
        }
    }

    fn knows(&self, request: Option<RequestId>, run: Option<RunId>) -> bool {
        self.requests.lock().knows(request, run)
    }
}

impl FrameSink<TokenDelta> for TokenizerActor {
    fn batch(&self, batch: Batch<TokenDelta>) {
        let (sampled_us, pulse) = (batch.sampled_us, batch.pulse);
        if sampled_us > 0 {
            metrics::histogram!("stator_tokenizer_hop_seconds").record(seconds_since(sampled_us));
        }
        let mut actions = Vec::with_capacity(batch.frames.len());
        self.requests.lock().batch(&self.model.pieces, batch, Instant::now(), &mut actions);
        self.perform(actions);
        self.outbox.flush(sampled_us, pulse);
    }

    fn lost(&self, from: &InstanceId) {
        let mut actions = Vec::new();
        self.requests.lock().lost(from, Instant::now(), &mut actions);
        self.perform(actions);
    }

    fn was_cut_off(&self) {
        self.requests.lock().was_cut_off();
    }
}

/// Seconds since a moment in unix microseconds; clocks of two hosts may differ.
fn seconds_since(unix_us: u64) -> f64 {
    let then = UNIX_EPOCH + Duration::from_micros(unix_us);
    SystemTime::now().duration_since(then).unwrap_or_default().as_secs_f64()
}
