//! The engine on the bus: takes submissions and control messages in, sends what the device reports.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{
    Context,
    frames::{HEARTBEAT, Outbox},
    lane::{Responder, Service},
    tombstones::Tombstones,
};
use messages::{
    Envelope, Fault, FaultCode, InstanceId, RequestId, Role, RunId,
    block::{CacheScope, ClusterKey},
    control::{Attach, Attached, Cancel},
    frame::{Body, Frame, Pulse, TextDelta, TokenDelta},
    lease::Lease,
    prefill::PrefillNews,
    submit::{Custody, Submit},
};
use models::{Logprobs, SamplingParams};
use parking_lot::Mutex;
use scheduler::{Choice, Event, Goal, Micros, Refusal, Request, RunKey};
use tokio::sync::mpsc;

use crate::{
    broadcast::Broadcast,
    device::{Command, Device, Full, Report},
    remote::Remote,
    runs::{Addressed, RunLog, Runs},
};

/// An engine that has been cut off from the bus this long ends its runs: others have taken them over.
pub const FENCE_AFTER: Duration = Duration::from_secs(10);
/// When a refused client may try again.
pub(crate) const RETRY_AFTER_MS: u32 = 1000;

pub struct EngineActor {
    context: Context,
    device: Device,
    broadcast: Arc<Broadcast>,
    /// `None`: every prompt is computed here.
    remote: Option<Arc<Remote>>,
    revision: String,
    key: ClusterKey,
    runs: Arc<Mutex<Runs>>,
    outbox: Outbox<TokenDelta>,
    /// Copies of acceptances go straight to ingress.
    copies: Outbox<TextDelta>,
    tombstones: Tombstones,
}

impl EngineActor {
    pub fn new(
        context: Context,
        device: Device,
        broadcast: Arc<Broadcast>,
        runs: Arc<Mutex<Runs>>,
        remote: Option<Arc<Remote>>,
        revision: String,
        key: ClusterKey,
    ) -> Arc<Self> {
        let outbox = Outbox::new(context.bus.clone(), context.me.instance.clone(), context.me.role);
        let copies = Outbox::new(context.bus.clone(), context.me.instance.clone(), context.me.role);
        let tombstones = Tombstones::default();
        Arc::new(Self { context, device, broadcast, remote, revision, key, runs, outbox, copies, tombstones })
    }

    /// Sends what the device reports, for as long as it does.
    pub async fn publish(self: Arc<Self>, mut reports: mpsc::Receiver<Report>) {
        let mut frames: Vec<Addressed> = Vec::new();
        while let Some(report) = reports.recv().await {
            let mut runs = self.runs.lock();
            let sampled_us = match report {
                Report::Cache(changes) => {
                    drop(runs);
                    self.broadcast.changes(&changes);
                    continue;
                }
                Report::Waits { run, held, wanted } => {
                    runs.waits(RunId(run.0), held * self.device.spec.page_size);
                    drop(runs);
                    if let Some(remote) = &self.remote {
                        remote.waits(RunId(run.0), held, wanted);
                    }
                    continue;
                }
                Report::Landed { run, landing } => {
                    drop(runs);
                    if let Some(remote) = &self.remote {
                        remote.landed(RunId(run.0), landing);
                    }
                    continue;
                }
                Report::Step { events, sampled_us } => {
                    self.end_waiting(&events);
                    for (dispatch, cached_tokens) in runs.step(events, &mut frames) {
                        self.broadcast.began(dispatch, cached_tokens);
                    }
                    sampled_us
                }
                Report::Refused { run, why } => {
                    if let Some(remote) = &self.remote {
                        remote.ended(RunId(run.0));
                    }
                    frames.extend(runs.refuse(RunId(run.0), refusal(&why)));
                    0
                }
            };
            for (inbox, frame) in frames.drain(..) {
                self.outbox.push(&inbox, frame);
            }
            self.outbox.flush(sampled_us, None);
        }
    }

    /// Tells of runs that have closed while their prompts were computed elsewhere.
    fn end_waiting(&self, events: &[Event]) {
        let Some(remote) = &self.remote else { return };
        for event in events {
            if let Event::RunClosed { run, .. } = event {
                remote.ended(RunId(run.0));
            }
        }
    }

    /// Keeps the slow duties: heartbeats, log expiry, fencing, runs of dead ingresses.
    pub async fn keep(self: Arc<Self>) {
        let departed = |lease: &Arc<Lease>| match (lease.role, &self.remote) {
            (Role::Ingress, _) => self.end_runs_of(&lease.instance),
            (Role::Router, _) => self.device.forget_router(&lease.instance),
            (Role::Prefill, Some(remote)) => remote.departed(lease),
            _ => {}
        };
        self.context.keep(|| self.beat(), departed).await;
    }

    fn beat(&self) {
        let now = Instant::now();
        let pulse = self.device.beat();
        // Nothing lives there: it forgets who is gone.
        self.copies.beat(HashMap::new(), None);
        if self.context.bus.cut_off().is_some_and(|cut| cut > FENCE_AFTER) {
            self.fence();
            return;
        }
        if let Some(remote) = &self.remote {
            self.device.spare(remote.has_help());
        }
        let alive = {
            let mut runs = self.runs.lock();
            metrics::gauge!("stator_engine_runs_live").set(runs.live() as f64);
            runs.forget_old(now);
            now.checked_sub(HEARTBEAT).map(|since| runs.silent(since)).unwrap_or_default()
        };
        self.outbox.beat(alive, Some(pulse));
    }

    /// Cut off for long: whoever waited has gone on elsewhere, so nothing of these runs may be said again.
    fn fence(&self) {
        let live = self.live_runs();
        if !live.is_empty() {
            tracing::warn!(runs = live.len(), "cut off from the bus, runs are ended");
            live.iter().for_each(|run| self.cancel_run(*run, None));
        }
        self.runs.lock().fence();
    }

    fn live_runs(&self) -> Vec<RunId> {
        self.runs.lock().live_runs()
    }

    fn end_runs_of(&self, ingress: &InstanceId) {
        let runs = self.runs.lock().of_ingress(ingress);
        if !runs.is_empty() {
            tracing::info!(%ingress, runs = runs.len(), "ingress is gone, its runs are cancelled");
        }
        runs.into_iter().for_each(|run| self.cancel_run(run, None));
    }

    fn cancel_run(&self, run: RunId, choice: Option<u32>) {
        metrics::counter!("stator_engine_cancels_total").increment(1);
        if let Err(Full(cancel)) = self.device.command(Command::Cancel { run: RunKey(run.0), choice }) {
            let device = self.device.clone();
            tokio::spawn(async move { device.insist(cancel).await });
        }
    }

    /// Takes a submission in, or says why not.
    fn admit(&self, envelope: &Envelope, submit: Submit) -> Result<(), Fault> {
        let run =
            submit.run.ok_or_else(|| Fault::invalid("run", "a submission to an engine names its run"))?;
        if self.context.life.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "the engine is draining"));
        }
        let log = RunLog::new(envelope.request, envelope.attempt, run, &submit);
        let waits_for = self.remote.as_ref().and_then(|remote| Some((remote, remote.helper(&submit)?)));
        let goal = if waits_for.is_some() { Goal::OutputOnceLanded } else { Goal::Output };
        let request = Box::new(Request { goal, ..self.request(envelope, run, &submit) });
        // The scheduler refuses it too, but only once custody has passed.
        request.params.check(&self.device.spec.sampling).map_err(|wrong| refusal(&wrong.into()))?;
        // Under the lock, so that no report of this run comes before its log, and no cancel between look and insertion.
        let mut runs = self.runs.lock();
        if self.tombstones.meets(envelope.request, envelope.attempt, Some(run)) {
            return Err(Fault::new(FaultCode::Cancelled, "the request was cancelled"));
        }
        let load = self.device.load();
        // The load is of the last step: what has come since is in the runs only.
        let running = u32::try_from(runs.live()).unwrap_or(u32::MAX);
        let queued = load.queued.max(running.saturating_sub(load.max_running));
        if queued >= load.max_queued {
            let text = format!("{queued} requests are queued, the limit is {}", load.max_queued);
            return Err(Fault::new(FaultCode::Overloaded, text).retry_after(RETRY_AFTER_MS));
        }
        if submit.maybe_poison() && runs.has_poison() {
            // If one of them kills this engine, the other must not be counted among its passengers.
            let text = "another request that engines have died under runs here";
            return Err(Fault::new(FaultCode::NoInstance, text).retry_after(RETRY_AFTER_MS));
        }
        if let Some((remote, prefill)) = &waits_for {
            remote.expect(run, envelope, &submit, prefill.clone());
        }
        let dispatch = submit.dispatch;
        self.device.command(Command::Admit { request, dispatch }).map_err(|_| {
            if let Some((remote, _)) = waits_for {
                remote.ended(run);
            }
            Fault::new(FaultCode::Overloaded, "the engine's intake is full").retry_after(RETRY_AFTER_MS)
        })?;
        runs.insert(log);
        Ok(())
    }

    fn request(&self, envelope: &Envelope, run: RunId, submit: &Submit) -> Request {
        let scope =
            CacheScope { revision: &self.revision, adapter: None, salt: submit.cache_salt.as_deref() };
        let sampling = &submit.sampling;
        let params = SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling.logit_bias.clone(),
            min_tokens: sampling.min_tokens,
            stop_ids: sampling.stop_ids.clone(),
            seed: sampling.seed,
            logprobs: sampling.logprobs.map_or(Logprobs::Off, Logprobs::Top),
        };
        let choices = submit
            .choices
            .iter()
            .map(|choice| Choice { index: choice.index, output: choice.output.to_vec() });
        Request {
            run: RunKey(run.0),
            goal: Goal::Output,
            prompt: submit.prompt.iter().collect(),
            choices: choices.collect(),
            params,
            max_tokens: self.limit(submit),
            priority: submit.priority,
            // Time left; the device thread makes it a moment of its own clock.
            deadline: envelope.deadline_ms.map(|ms| Micros(ms.saturating_mul(1000))),
            root: self.key.root(&scope),
            score_prompt_from: submit.score_prompt_from,
            arrived: Micros(0),
        }
    }

    /// Output tokens of each choice.
    fn limit(&self, submit: &Submit) -> u32 {
        if !submit.open_ended {
            return submit.max_tokens;
        }
        let prompt = u32::try_from(submit.prompt.len()).unwrap_or(u32::MAX);
        // Where not even one has room, the scheduler says so.
        submit.max_tokens.min(self.device.longest_sequence.saturating_sub(prompt).max(1))
    }

    /// Tells ingress and tokenizer that this engine holds the run.
    fn announce(&self, envelope: &Envelope, run: RunId, ingress: &InstanceId, tokenizer: &InstanceId) {
        let me = &self.context.me;
        let (request, attempt) = (envelope.request, envelope.attempt);
        let accepted = || Body::Accepted { instance: me.instance.clone(), role: me.role, prefill: None };
        self.copies.push(ingress, Frame { request, attempt, run: Some(run), body: accepted() });
        self.copies.flush(0, None);
        let body = Body::Accepted { instance: me.instance.clone(), role: me.role, prefill: None };
        self.outbox.push(tokenizer, Frame { request, attempt, run: Some(run), body });
        self.outbox.flush(0, None);
    }

    /// Whether any run is live.
    pub fn is_idle(&self) -> bool {
        self.runs.lock().live() == 0
    }

    /// Hands all live runs back: their holders go on elsewhere.
    pub fn hand_back(&self) {
        let frames: Vec<Addressed> = {
            let mut runs = self.runs.lock();
            let live = runs.live_runs();
            let fault = || Fault::new(FaultCode::Draining, "the engine went away");
            live.iter().filter_map(|run| runs.refuse(*run, fault())).collect()
        };
        for (inbox, frame) in frames {
            self.outbox.push(&inbox, frame);
        }
        self.outbox.flush(0, None);
    }
}

impl Service for EngineActor {
    type Body = Submit;

    fn receive(&self, envelope: Envelope, submit: Submit, reply: Responder) {
        let (run, ingress, tokenizer) = (submit.run, submit.ingress.clone(), submit.tokenizer.clone());
        let prompt_tokens = submit.prompt.len();
        match self.admit(&envelope, submit) {
            Ok(()) => {
                tracing::debug!(request = %envelope.request, label = envelope.label, prompt_tokens, "accepted");
                reply.send(&Custody::Accepted { instance: self.context.me.instance.clone() });
                if let Some(run) = run {
                    self.announce(&envelope, run, &ingress, &tokenizer);
                }
            }
            Err(fault) => {
                metrics::counter!("stator_engine_refusals_total").increment(1);
                tracing::debug!(request = %envelope.request, %fault, "refused");
                reply.send(&Custody::Refused(fault));
            }
        }
    }

    fn cancel(&self, cancel: Cancel) {
        // Before the runs are looked at: one that comes in between meets it.
        self.tombstones.bury(&cancel);
        let runs = self.runs.lock().meant_by(&cancel);
        runs.into_iter().for_each(|run| self.cancel_run(run, cancel.choice));
    }

    fn knows(&self, _: Option<RequestId>, run: Option<RunId>) -> bool {
        run.is_some_and(|run| self.runs.lock().knows(run))
    }

    fn pulse(&self) -> Pulse {
        self.device.clock.pulse()
    }

    fn attach(&self, attach: Attach, reply: Responder) {
        let mut runs = self.runs.lock();
        let frames = runs.attach(&attach);
        reply.send(&Attached { known: frames.is_some() });
        metrics::counter!("stator_engine_attaches_total").increment(1);
        for (inbox, frame) in frames.unwrap_or_default() {
            self.outbox.push(&inbox, frame);
        }
        self.outbox.flush(0, None);
    }

    fn snapshot(&self, reply: Responder) {
        self.broadcast.snapshot(reply);
    }

    fn prefill(&self, news: PrefillNews, reply: Responder) {
        if let PrefillNews::WantSlots { run, cached_blocks, .. } = news {
            let tokens = cached_blocks.saturating_mul(self.device.spec.page_size);
            self.runs.lock().cached_elsewhere(run, tokens);
        }
        if let Some(remote) = &self.remote {
            remote.news(news, reply);
        }
    }
}

/// A scheduler's refusal as others are told.
pub(crate) fn refusal(why: &Refusal) -> Fault {
    let text = why.to_string();
    match why {
        Refusal::QueueFull { .. } => Fault::new(FaultCode::Overloaded, text).retry_after(RETRY_AFTER_MS),
        Refusal::NeverFits { .. } => Fault::new(FaultCode::NeverFits, text),
        Refusal::TooLong { .. } => Fault::new(FaultCode::ContextLengthExceeded, text),
        Refusal::EmptyPrompt | Refusal::UnknownToken { .. } => Fault::invalid("prompt", text),
        Refusal::NoChoices | Refusal::DuplicateChoice(_) => Fault::invalid("n", text),
        Refusal::NoBlocks { .. } => Fault::invalid("prompt", text),
        Refusal::Sampling(wrong) => Fault::invalid(wrong.field, text),
        Refusal::DuplicateRun(_) => Fault::new(FaultCode::Internal, text),
    }
}
