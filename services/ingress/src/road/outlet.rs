//! Where the road ends and the client's answer begins: events that wait to be written, bounded in bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use messages::{
    Fault, FaultCode,
    frame::{End, TextLogprobs, TokenLogprobs, Usage},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Events of a stream beyond which those of one choice are joined.
const BEHIND: usize = 64;
/// What an event takes beside its text.
const EVENT_BYTES: usize = 96;

/// New output of one choice, ready to be written.
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    /// Choice, counted over all prompts of the HTTP request.
    pub index: u32,
    pub text: String,
    /// Filled only if the answer shows ids.
    pub ids: Vec<u32>,
    pub tokens: usize,
    pub logprobs: Vec<TextLogprobs>,
    pub end: Option<End>,
    /// When the last token was sampled, unix microseconds.
    pub sampled_us: u64,
}

impl Delta {
    fn bytes(&self) -> usize {
        let tops: usize = self.logprobs.iter().map(|scored| 1 + scored.top.len()).sum();
        EVENT_BYTES + self.text.len() + self.ids.len() * 4 + tops * EVENT_BYTES
    }

    fn join(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.ids.extend(later.ids);
        self.tokens += later.tokens;
        self.logprobs.extend(later.logprobs);
        self.end = later.end;
        self.sampled_us = later.sampled_us;
    }
}

#[derive(Debug, PartialEq)]
pub enum Event {
    /// A prompt's first output is about to come; only if the answer shows ids.
    Begun {
        prompt: usize,
        prompt_tokens: u32,
        cached_tokens: u32,
    },
    Delta(Delta),
    /// Log probabilities of a prompt's tokens.
    Scored {
        prompt: usize,
        tokens: Vec<TokenLogprobs>,
    },
    /// A prompt's choices have all ended.
    Closed {
        prompt: usize,
        usage: Usage,
    },
}

/// Bytes that wait for clients, over all streams.
#[derive(Debug)]
pub struct Backlog {
    held: AtomicUsize,
    /// Per stream.
    pub stream_limit: usize,
    /// Over all streams.
    pub total_limit: usize,
}

impl Backlog {
    pub fn new(stream_limit: usize, total_limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), stream_limit, total_limit }
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// How full it is after an event was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    Fine,
    /// This stream is over its bound.
    Stream,
    /// All streams together are over theirs.
    Total,
}

/// How an answer is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Streamed, or collected and written as one.
    pub stream: bool,
    /// The answer shows token ids.
    pub ids: bool,
}

/// The queue between the road and the writer of one HTTP answer.
#[derive(Debug)]
pub struct Outlet {
    manner: Manner,
    state: Mutex<State>,
    waker: AtomicWaker,
    backlog: Arc<Backlog>,
    /// Nobody wants more: the answer is written, the client is gone, or all has failed.
    done: CancellationToken,
}

#[derive(Debug)]
struct State {
    events: Vec<Event>,
    /// Per choice, where in `events` its waiting delta is.
    places: Vec<Option<usize>>,
    bytes: usize,
    /// Prompts whose 200 is not yet sure.
    shut: usize,
    /// Prompts whose end is not here.
    running: usize,
    fault: Option<Fault>,
}

impl Outlet {
    pub fn new(prompts: usize, choices: usize, manner: Manner, backlog: Arc<Backlog>) -> Self {
        let state = State {
            events: Vec::new(),
            places: vec![None; choices],
            bytes: 0,
            shut: prompts,
            running: prompts,
            fault: None,
        };
        Self {
            manner,
            state: Mutex::new(state),
            waker: AtomicWaker::new(),
            backlog,
            done: CancellationToken::new(),
        }
    }

    pub fn manner(&self) -> Manner {
        self.manner
    }

    pub fn done(&self) -> &CancellationToken {
        &self.done
    }

    /// Bytes that wait here.
    pub fn waiting(&self) -> usize {
        self.state.lock().bytes
    }

    /// One more prompt is in custody.
    pub fn open(&self) {
        let mut state = self.state.lock();
        state.shut = state.shut.saturating_sub(1);
        let opened = state.shut == 0;
        drop(state);
        if opened {
            self.waker.wake();
        }
    }

    pub fn push(&self, event: Event) -> Fill {
        let mut state = self.state.lock();
        if state.fault.is_some() || self.done.is_cancelled() {
            return Fill::Fine;
        }
        let was_empty = state.events.is_empty();
        match event {
            Event::Delta(delta) => return self.push_delta(state, delta, was_empty),
            Event::Closed { .. } => state.running = state.running.saturating_sub(1),
            Event::Begun { .. } | Event::Scored { .. } => {}
        }
        state.events.push(event);
        // A collected answer is looked at when all of it is here.
        let wanted = self.manner.stream || state.running == 0;
        drop(state);
        if wanted {
            self.waker.wake();
        }
        Fill::Fine
    }

    fn push_delta(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        delta: Delta,
        was_empty: bool,
    ) -> Fill {
        let joins = !self.manner.stream || state.events.len() >= BEHIND;
        let place = state.places.get(delta.index as usize).copied().flatten().filter(|_| joins);
        let (index, mut added) = (delta.index as usize, delta.bytes());
        match place.and_then(|at| state.events.get_mut(at)) {
            Some(Event::Delta(waiting)) => {
                added -= EVENT_BYTES;
                waiting.join(delta);
            }
            _ => {
                let at = state.events.len();
                if let Some(place) = state.places.get_mut(index) {
                    *place = Some(at);
                }
                state.events.push(Event::Delta(delta));
            }
        }
        if !self.manner.stream {
            return Fill::Fine;
        }
        state.bytes += added;
        let held = self.backlog.held.fetch_add(added, Ordering::Relaxed) + added;
        let fill = if state.bytes > self.backlog.stream_limit {
            Fill::Stream
        } else if held > self.backlog.total_limit {
            Fill::Total
        } else {
            Fill::Fine
        };
        // Whoever is woken wants the lock.
        drop(state);
        if was_empty {
            self.waker.wake();
        }
        fill
    }

    /// Ends the answer with a fault, after what is already here; a slow client's backlog is dropped.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.state.lock();
        if state.fault.is_some() || state.running == 0 {
            return;
        }
        if fault.code == FaultCode::SlowClient {
            state.events.clear();
            self.release(&mut state);
        }
        state.fault = Some(fault);
        drop(state);
        self.done.cancel();
        self.waker.wake();
    }

    /// Ready when every prompt is in custody, or with the fault that came first.
    pub fn poll_open(&self, cx: &Context<'_>) -> Poll<Result<(), Fault>> {
        self.waker.register(cx.waker());
        let state = self.state.lock();
        match &state.fault {
            Some(fault) if state.events.is_empty() || state.shut > 0 => Poll::Ready(Err(fault.clone())),
            _ if state.shut == 0 => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    /// Takes what waits into `events`; `None` when all has been taken, a fault when there is nothing but that.
    pub fn poll_take(&self, cx: &Context<'_>, events: &mut Vec<Event>) -> Poll<Option<Result<(), Fault>>> {
        self.waker.register(cx.waker());
        let mut state = self.state.lock();
        let ready = self.manner.stream || state.running == 0 || state.fault.is_some();
        if !state.events.is_empty() && ready {
            events.append(&mut state.events);
            state.places.fill(None);
            self.release(&mut state);
            return Poll::Ready(Some(Ok(())));
        }
        match state.fault.clone() {
            Some(fault) => Poll::Ready(Some(Err(fault))),
            None if state.running == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn release(&self, state: &mut State) {
        self.backlog.held.fetch_sub(state.bytes, Ordering::Relaxed);
        state.bytes = 0;
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let bytes = self.state.get_mut().bytes;
        self.backlog.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
