use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{Fault, FaultCode};
use tokio::sync::oneshot;

use super::{Deployment, State};
use crate::queue::{Claim, Entered, Place};

/// Departures from the queue that its speed is judged by.
const RATE_OVER: usize = 64;
/// Bounds of what a refused client is told to wait.
const RETRY_AFTER: std::ops::RangeInclusive<u32> = 1000..=30_000;

/// Told that its turn has come, or dropped when it had to leave for another.
pub(super) type Waiter = oneshot::Sender<()>;

/// Whether a request may go to an engine.
pub enum Turn {
    Now(Grant),
    Later(Waiting),
}

/// Leave to dispatch one request; given back once it is dispatched, or not to be.
pub struct Grant(Arc<Deployment>);

/// A place in the queue, given up when dropped.
pub struct Waiting {
    deployment: Arc<Deployment>,
    claim: Claim,
    place: Place,
    told: oneshot::Receiver<()>,
}

impl Deployment {
    /// Asks for a turn.
    ///
    /// # Errors
    /// [`FaultCode::Overloaded`] if too many wait already.
    pub fn enter(self: &Arc<Self>, claim: Claim) -> Result<Turn, Fault> {
        let mut state = self.lock();
        // With nobody alive there is nothing to queue for: such requests are held elsewhere.
        if state.decode.is_empty() || (state.queue.is_empty() && state.has_room()) {
            state.granted += 1;
            return Ok(Turn::Now(Grant(self.clone())));
        }
        let (waiter, told) = oneshot::channel();
        match state.queue.enter(&claim, waiter) {
            Entered::Waits(place) | Entered::WaitsInsteadOf(place, _) => {
                metrics::counter!("stator_router_queued_total").increment(1);
                Ok(Turn::Later(Waiting { deployment: self.clone(), claim, place, told }))
            }
            Entered::Full(_) => Err(state.full()),
        }
    }

    /// A turn out of turn: for what has waited before, or may go to one engine only.
    pub fn at_once(self: &Arc<Self>) -> Grant {
        self.lock().granted += 1;
        Grant(self.clone())
    }
}

impl Waiting {
    /// Waits for the turn.
    ///
    /// # Errors
    /// [`FaultCode::Overloaded`] if it had to leave for a request of a tenant with fewer.
    pub async fn turn(mut self) -> Result<Grant, Fault> {
        match (&mut self.told).await {
            Ok(()) => {
                // The grant stands for it from now on.
                self.told.close();
                Ok(Grant(self.deployment.clone()))
            }
            Err(_) => Err(self.deployment.lock().full()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.deployment.lock();
        let waited = state.queue.leave(&self.claim, self.place).is_some();
        // Told and not heard: the turn goes to the next.
        if !waited && self.told.try_recv().is_ok() {
            state.granted = state.granted.saturating_sub(1);
            state.pump();
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.granted = state.granted.saturating_sub(1);
        state.pump();
    }
}

impl State {
    /// Whether engines have room for one more than those that have a turn.
    fn has_room(&self) -> bool {
        if self.queue_above <= 0.0 {
            return true;
        }
        let mut left = self.granted;
        self.decode.members().iter().any(|member| {
            let room = member.room(self.queue_above);
            let more = room > left;
            left = left.saturating_sub(room);
            more
        })
    }

    /// Gives turns for as long as there is room.
    pub(super) fn pump(&mut self) {
        while !self.queue.is_empty() && self.has_room() {
            let Some(waiter) = self.queue.pop() else { return };
            if waiter.send(()).is_ok() {
                self.granted += 1;
                self.rate.note(Instant::now());
            }
        }
    }

    fn full(&self) -> Fault {
        let waiting = self.queue.len();
        let text = format!("{waiting} requests wait for engines of this model");
        let wait = self.rate.time_for(waiting);
        let wait = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        Fault::new(FaultCode::Overloaded, text)
            .retry_after(wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()))
    }
}

/// How fast the queue moves.
#[derive(Debug, Default)]
pub(super) struct Rate(VecDeque<Instant>);

impl Rate {
    fn note(&mut self, now: Instant) {
        if self.0.len() == RATE_OVER {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// What so many departures have taken lately.
    fn time_for(&self, requests: usize) -> Duration {
        let Some(oldest) = self.0.front() else { return Duration::ZERO };
        oldest.elapsed().mul_f64(requests as f64 / self.0.len() as f64)
    }
}
