//! One request on its way: the state machine, the queue it fills and the task it wakes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use messages::{
    Envelope, Fault, FaultCode, InstanceId, Pool, RequestId, Role, RunId,
    frame::{Alive, Frame, TextDelta},
    generate::{Generate, RunAt},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{
    outlet::{Delta, Event, Fill, Outlet},
    passage::{Effect, Passage},
    repair::Record,
};

/// What all prompts of one HTTP request have in common.
#[derive(Debug, Clone)]
pub struct Passenger {
    pub pool: Pool,
    pub deadline: Option<Instant>,
    pub traceparent: Option<String>,
    pub label: Option<String>,
}

pub struct Trip {
    pub request: RequestId,
    pub passenger: Passenger,
    pub outlet: Arc<Outlet>,
    generate: Generate,
    /// Place of the prompt in the HTTP request.
    prompt: usize,
    /// Choices of the prompts before it.
    first_choice: u32,
    passage: Mutex<Passage>,
    wake: Notify,
    /// Several tokenizers were offered the request.
    scattered: AtomicBool,
}

/// What the reader of frames has to do beside.
#[derive(Debug, PartialEq)]
pub enum Upshot {
    Nothing,
    Stray(RunId),
    Rival(RunId),
    /// All streams together hold too much.
    Crowded,
}

impl Trip {
    pub fn new(
        generate: Generate,
        prompt: usize,
        first_choice: u32,
        passenger: Passenger,
        outlet: Arc<Outlet>,
    ) -> Self {
        let request = RequestId::mint();
        let passage = Passage::new(request, generate.n, generate.score_prompt_from, Instant::now());
        let (passage, wake) = (Mutex::new(passage), Notify::new());
        let scattered = AtomicBool::new(false);
        Self { request, passenger, outlet, generate, prompt, first_choice, passage, wake, scattered }
    }

    pub fn passage(&self) -> MutexGuard<'_, Passage> {
        self.passage.lock()
    }

    /// Completes when the task that looks after this trip has something to look at.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn scatter(&self) {
        self.scattered.store(true, Ordering::Relaxed);
    }

    pub fn is_scattered(&self) -> bool {
        self.scattered.load(Ordering::Relaxed)
    }

    /// Takes a frame in and passes on what is new.
    pub fn frame(
        &self,
        from: &InstanceId,
        role: Role,
        frame: Frame<TextDelta>,
        sampled_us: u64,
        now: Instant,
    ) -> Upshot {
        let mut passage = self.passage.lock();
        let was_open = passage.is_open();
        let begins = self.outlet.manner().ids && !passage.has_begun();
        let effect = passage.frame(from, role, frame, now);
        if !was_open && passage.is_open() {
            self.outlet.open();
        }
        match effect {
            Effect::Nothing => Upshot::Nothing,
            Effect::Piece { choice, piece } => {
                let ids = match passage.strand(choice).filter(|_| self.outlet.manner().ids) {
                    Some(strand) => strand.ids()[strand.ids().len() - piece.tokens..].to_vec(),
                    None => Vec::new(),
                };
                let (prompt_tokens, cached_tokens) = passage.prompt_tokens();
                drop(passage);
                if begins {
                    self.push(Event::Begun { prompt: self.prompt, prompt_tokens, cached_tokens });
                }
                self.push(Event::Delta(Delta {
                    index: self.first_choice + choice,
                    text: piece.text,
                    ids,
                    tokens: piece.tokens,
                    logprobs: piece.logprobs,
                    end: piece.end,
                    sampled_us,
                }))
            }
            Effect::Scored(tokens) => self.push(Event::Scored { prompt: self.prompt, tokens }),
            Effect::Closed(usage) => {
                drop(passage);
                self.wake();
                self.push(Event::Closed { prompt: self.prompt, usage })
            }
            Effect::Stray(run) => Upshot::Stray(run),
            Effect::Rival(run) => Upshot::Rival(run),
            Effect::Trouble => {
                self.wake();
                Upshot::Nothing
            }
        }
    }

    pub fn alive(&self, from: &InstanceId, role: Role, alive: &Alive, now: Instant) -> Upshot {
        let mut passage = self.passage.lock();
        let was_open = passage.is_open();
        let effect = passage.alive(from, role, alive, now);
        if !was_open && passage.is_open() {
            self.outlet.open();
        }
        match effect {
            Effect::Stray(run) => Upshot::Stray(run),
            Effect::Rival(run) => Upshot::Rival(run),
            _ => Upshot::Nothing,
        }
    }

    /// Ends the trip with a fault.
    pub fn fail(&self, fault: Fault) {
        self.outlet.fail(fault);
    }

    fn push(&self, event: Event) -> Upshot {
        match self.outlet.push(event) {
            Fill::Fine => Upshot::Nothing,
            Fill::Stream => {
                self.fail(slow_client());
                Upshot::Nothing
            }
            Fill::Total => Upshot::Crowded,
        }
    }

    /// The envelope of the current attempt.
    pub fn envelope(&self, now: Instant) -> Envelope {
        let left = |deadline: Instant| deadline.saturating_duration_since(now).as_millis();
        Envelope {
            request: self.request,
            attempt: self.passage.lock().attempt(),
            deadline_ms: self.passenger.deadline.map(|at| u64::try_from(left(at)).unwrap_or(u64::MAX)),
            traceparent: self.passenger.traceparent.clone(),
            label: self.passenger.label.clone(),
        }
    }

    /// The request as it has to be sent now: with its journal if an earlier attempt got somewhere.
    pub fn compose(&self, record: &Record, attach: Option<RunAt>) -> Generate {
        Generate {
            journal: self.passage.lock().journal(self.generate.sampling.logprobs.is_some()),
            attach,
            avoid: record.avoid().to_vec(),
            deaths: record.deaths(),
            ..self.generate.clone()
        }
    }
}

/// The end of a stream whose client does not read.
pub fn slow_client() -> Fault {
    Fault::new(FaultCode::SlowClient, "the client reads too slowly, its stream was ended")
}
