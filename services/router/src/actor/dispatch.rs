//! The way of one request through the router: its turn, an engine, and the handing over.

use std::{
    collections::HashSet,
    future::Future,
    time::{Duration, Instant},
};

use actors::{custody::hand_over, frames::HEARTBEAT};
use messages::{Fault, FaultCode, InstanceId, Role, RunId, codec, frame::Body, subject, submit::Submit};
use parking_lot::Mutex;

use super::{Job, RETRY_AFTER_MS, RouterActor};
use crate::{
    chain::Chain,
    decisions::{Fate, Outcome},
    deployment::{Choice, Grant, Turn, Wish},
};

/// How long engines that refuse or do not answer are tried before the request fails.
const DISPATCH_WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// Engines that all said that they are full say something new about their load within this time.
const FULL_PAUSE: Duration = HEARTBEAT;
/// Engines that may leave the offer of a request unanswered before it goes back to ingress, which finds out whether
/// they died of it.
const UNANSWERED_AT_MOST: usize = 2;
/// The same of a request that engines have died under.
const UNANSWERED_POISON: usize = 1;

/// The dispatch that is under way.
struct Offered {
    number: u64,
    engine: InstanceId,
    prefill: Option<InstanceId>,
}

impl RouterActor {
    pub(super) async fn route(self: std::sync::Arc<Self>, job: Job, turn: Turn) {
        let outcome = tokio::select! {
            outcome = self.dispatch(&job, turn) => outcome,
            () = self.leaving.cancelled() => Err(Fault::new(FaultCode::Draining, "the router went away")),
            () = job.cancelled.cancelled() => Err(Fault::new(FaultCode::Cancelled, "the request was cancelled")),
        };
        let Job { envelope, submit, taken, .. } = job;
        self.held.lock().release(envelope.request, envelope.attempt);
        metrics::histogram!("stator_router_held_seconds").record(taken.elapsed().as_secs_f64());
        let outcome_name = match outcome {
            Ok(engine) => {
                self.notes.lock().drop_of(envelope.request, envelope.attempt);
                tracing::debug!(request = %envelope.request, label = envelope.label, %engine, "dispatched");
                "dispatched"
            }
            Err(Fault { code: FaultCode::Cancelled, .. }) => {
                self.note(&envelope, &submit, Fate::Cancelled, taken.elapsed(), None);
                self.cancel_at_engines(&envelope, &submit);
                "cancelled"
            }
            Err(fault) => {
                tracing::debug!(request = %envelope.request, %fault, "not dispatched");
                let fate = if fault.code == FaultCode::Overloaded { Fate::Refused } else { Fate::Failed };
                self.note(&envelope, &submit, fate, taken.elapsed(), Some(fault.clone()));
                self.say(&envelope, &submit.ingress, None, Body::Failed(fault));
                "failed"
            }
        };
        metrics::counter!("stator_router_requests_total", "outcome" => outcome_name).increment(1);
    }

    async fn dispatch(&self, job: &Job, turn: Turn) -> Result<InstanceId, Fault> {
        let deadline = job.envelope.deadline_ms.map(|ms| job.taken + Duration::from_millis(ms));
        let mut grant = Some(self.granted(job, deadline, turn).await?);
        if job.submit.maybe_poison() {
            // It may wait for long, and others need not wait for it.
            grant = None;
        }
        let began = Instant::now();
        let mut until = began + self.hold();
        let unanswered = Mutex::new(HashSet::new());
        loop {
            if grant.is_none() && self.queues(&job.submit) {
                // Its turn was spent on engines that did not take it.
                grant = Some(self.granted(job, deadline, job.deployment.enter_again()).await?);
                until = Instant::now() + self.hold();
            }
            if job.submit.maybe_poison() {
                let waits = Instant::now();
                in_time(deadline, self.wait_for_a_place(job)).await?;
                until += waits.elapsed();
            }
            in_time(deadline, self.wait_for_engines(job, until)).await??;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(too_late());
            }
            match self.offer(job, deadline, &mut grant, &unanswered).await {
                Err(_) if unanswered.lock().len() >= patience(job) => return Err(silent()),
                // Whoever was alive has vanished meanwhile: hold on.
                Err(Fault { code: FaultCode::NoInstance, .. }) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Fault { code: FaultCode::Overloaded, .. }) if self.is_patient(began) => {
                    in_time(deadline, tokio::time::sleep(FULL_PAUSE)).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Engines that are all full are offered the request again: for as long as it takes, where requests queue.
    fn is_patient(&self, began: Instant) -> bool {
        self.settings.queue_above > 0.0 || began.elapsed() < DISPATCH_WITHIN
    }

    /// Somebody reads an answer that has begun; who names an engine waits there; what may kill engines has a queue of
    /// its own.
    pub(super) fn queues(&self, submit: &Submit) -> bool {
        let has_begun = submit.choices.iter().any(|choice| !choice.output.is_empty());
        self.settings.queue_above > 0.0
            && !has_begun
            && !submit.maybe_poison()
            && submit.routing.pin.is_none()
    }

    fn hold(&self) -> Duration {
        Duration::from_secs(self.settings.hold_when_empty)
    }

    async fn granted(&self, job: &Job, deadline: Option<Instant>, turn: Turn) -> Result<Grant, Fault> {
        match turn {
            Turn::Now(grant) => Ok(grant),
            Turn::Later(waiting) => {
                self.note(&job.envelope, &job.submit, Fate::Queued, job.taken.elapsed(), None);
                tokio::select! {
                    turn = in_time(deadline, waiting.turn()) => turn?,
                    () = job.deployment.forsaken(job.taken, self.hold()) => Err(nobody()),
                }
            }
        }
    }

    /// Waits for an engine that has no other request aboard that engines have died under.
    async fn wait_for_a_place(&self, job: &Job) {
        let mut changed = job.deployment.changed();
        while job.deployment.lock().poison_waits(job.submit.routing.pin.as_ref()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn wait_for_engines(&self, job: &Job, until: Instant) -> Result<(), Fault> {
        let mut changed = job.deployment.changed();
        let pin = job.submit.routing.pin.as_ref();
        let lacking = || {
            let state = job.deployment.lock();
            pin.map_or(state.decode.is_empty(), |pin| state.decode.member(pin).is_none())
        };
        let over = async {
            match pin {
                Some(pin) => {
                    tokio::time::sleep_until(until.into()).await;
                    absent(format!("the engine '{pin}' is not alive"))
                }
                None => {
                    job.deployment.forsaken(job.taken, self.hold()).await;
                    nobody()
                }
            }
        };
        let mut over = std::pin::pin!(over);
        if lacking() {
            self.note(&job.envelope, &job.submit, Fate::Held, job.taken.elapsed(), None);
        }
        while lacking() {
            tokio::select! {
                _ = changed.changed() => {}
                fault = &mut over => return Err(fault),
            }
        }
        Ok(())
    }

    async fn offer(
        &self,
        job: &Job,
        deadline: Option<Instant>,
        grant: &mut Option<Grant>,
        unanswered: &Mutex<HashSet<InstanceId>>,
    ) -> Result<InstanceId, Fault> {
        let bus = &self.context.bus;
        let give_up = Instant::now() + DISPATCH_WITHIN;
        let give_up = deadline.map_or(give_up, |deadline| give_up.min(deadline));
        let mut envelope = job.envelope.clone();
        envelope.deadline_ms =
            job.envelope.deadline_ms.map(|ms| ms.saturating_sub(millis(job.taken.elapsed())));
        let mut chains = None;
        let under_way: Mutex<Option<Offered>> = Mutex::default();
        let mut submit = job.submit.clone();
        let choose = |tried: &[InstanceId]| {
            self.not_taken(job, under_way.lock().take());
            let alone = job.submit.deaths > 0 || !unanswered.lock().is_empty();
            let offered = self.choose(job, &mut chains, tried, alone, grant)?;
            let engine = offered.engine.clone();
            *under_way.lock() = Some(offered);
            Some(engine)
        };
        let message = |engine: &InstanceId| {
            let under_way = under_way.lock();
            submit.run = Some(RunId::draw());
            submit.dispatch = under_way.as_ref().map(|it| (self.context.me.instance.clone(), it.number));
            submit.prefill = under_way.as_ref().and_then(|it| it.prefill.clone());
            let patience = self.settings.remote_prefill_patience_ms;
            submit.prefill_patience_ms = if submit.goes_on() { 0 } else { patience };
            let subject = subject::instance_requests(bus.namespace(), Role::Decode, &submit.pool, engine);
            (subject, codec::encode(&submit))
        };
        let silence = |engine: &InstanceId| {
            let prefill = under_way.lock().as_ref().and_then(|it| it.prefill.clone());
            let body = Body::Unanswered { engine: engine.clone(), prefill };
            self.say(&job.envelope, &job.submit.ingress, None, body);
            let mut unanswered = unanswered.lock();
            unanswered.insert(engine.clone());
            unanswered.len() < patience(job)
        };
        let outcome = hand_over(bus, &self.suspects, &envelope, give_up, choose, message, silence).await;
        let under_way = under_way.lock().take();
        match (&outcome, under_way) {
            (Ok(_), Some(Offered { number, engine, prefill })) => {
                self.ledger.lock().close(number, Outcome::Accepted);
                // The engine tells ingress itself, unless it dies first.
                let accepted = Body::Accepted { instance: engine, role: Role::Decode, prefill };
                self.say(&job.envelope, &job.submit.ingress, submit.run, accepted);
            }
            (_, under_way) => self.not_taken(job, under_way),
        }
        outcome
    }

    /// Decides who gets the request next. `chains` are made with the first decision. `alone`: see [`Wish::alone`].
    fn choose(
        &self,
        job: &Job,
        chains: &mut Option<Vec<Chain>>,
        tried: &[InstanceId],
        alone: bool,
        grant: &mut Option<Grant>,
    ) -> Option<Offered> {
        let (began, cpu_began) = (Instant::now(), thread_cpu_time());
        let number = self.next_dispatch();
        let chains = chains.get_or_insert_with(|| self.chains(job));
        let wish = Wish {
            submit: &job.submit,
            chains,
            tried,
            suspects: &self.suspects,
            alone,
            show_all: self.recorder.is_some(),
        };
        let choice: Choice = job.deployment.lock().choose(&wish, number, began)?;
        // It counts as the engine's from here on, no longer as one that may go.
        drop(grant.take());
        let offered = Offered { number, engine: choice.engine.clone(), prefill: choice.prefill.clone() };
        self.explain(job, number, choice);
        self.meters.seconds.record(began.elapsed());
        self.meters.cpu_seconds.record(thread_cpu_time().saturating_sub(cpu_began));
        Some(offered)
    }

    fn not_taken(&self, job: &Job, offered: Option<Offered>) {
        let Some(Offered { number, engine, prefill }) = offered else { return };
        job.deployment.lock().refused(&engine, prefill.as_ref(), number);
        self.ledger.lock().close(number, Outcome::NotTaken);
    }

    /// The ids under which engines cache the prompt, for each page size of theirs.
    fn chains(&self, job: &Job) -> Vec<Chain> {
        let engines = job.deployment.lock().decode.one_of_each_page_size();
        engines.iter().map(|lease| Chain::of(&self.key, lease, &job.submit)).collect()
    }
}

fn patience(job: &Job) -> usize {
    if job.submit.maybe_poison() { UNANSWERED_POISON } else { UNANSWERED_AT_MOST }
}

fn nobody() -> Fault {
    absent("no engine of this model is alive".to_owned())
}

fn absent(text: String) -> Fault {
    Fault::new(FaultCode::NoInstance, text).retry_after(RETRY_AFTER_MS)
}

fn silent() -> Fault {
    let text = "the engines that were offered the request do not answer";
    Fault::new(FaultCode::Unanswered, text).retry_after(PAUSE.as_millis() as u32)
}

/// CPU time that this thread has had: what a busy machine takes from it is not in there.
fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn too_late() -> Fault {
    Fault::new(FaultCode::DeadlineExceeded, "the deadline passed before an engine was found")
}

async fn in_time<T>(deadline: Option<Instant>, what: impl Future<Output = T>) -> Result<T, Fault> {
    match deadline {
        None => Ok(what.await),
        Some(deadline) => tokio::time::timeout_at(deadline.into(), what).await.map_err(|_| too_late()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
