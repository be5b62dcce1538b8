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
    /// `None`: it has come back.
    claim: Option<Claim>,
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
        if state.queue.is_empty() && state.has_room() {
            state.granted += 1;
            return Ok(Turn::Now(Grant(self.clone())));
        }
        let (waiter, told) = oneshot::channel();
        match state.queue.enter(&claim, waiter) {
            Entered::Waits(place) | Entered::WaitsInsteadOf(place, _) => {
                metrics::counter!("stator_router_queued_total").increment(1);
                state.watch_queue();
                Ok(Turn::Later(Waiting { deployment: self.clone(), claim: Some(claim), place, told }))
            }
            Entered::Full(_) => Err(state.full()),
        }
    }

    /// Another turn for what had one and found no engine that took it: it goes before all that have had none.
    pub fn enter_again(self: &Arc<Self>) -> Turn {
        let mut state = self.lock();
        if !state.queue.has_returned() && state.has_room() {
            state.granted += 1;
            return Turn::Now(Grant(self.clone()));
        }
        let (waiter, told) = oneshot::channel();
        let place = state.queue.come_back(waiter);
        state.watch_queue();
        Turn::Later(Waiting { deployment: self.clone(), claim: None, place, told })
    }

    /// A turn out of turn: for an answer that has begun, or what may go to one engine only.
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
        let waited = match &self.claim {
            Some(claim) => state.queue.leave(claim, self.place).is_some(),
            None => state.queue.leave_again(self.place).is_some(),
        };
        state.watch_queue();
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
    /// Whether engines have room for one more than those that have a turn. Without a queue there always is.
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
        self.watch_queue();
    }

    /// After a change of the queue.
    fn watch_queue(&mut self) {
        self.rate.watch(!self.queue.is_empty(), Instant::now());
    }

    fn full(&self) -> Fault {
        let waiting = self.queue.len();
        let text = format!("{waiting} requests wait for engines of this model");
        let wait = self.rate.time_for(waiting, Instant::now());
        let wait = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        Fault::new(FaultCode::Overloaded, text)
            .retry_after(wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()))
    }
}

/// How fast the queue moves while anything waits in it.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// By the time that something had waited until then.
    departures: VecDeque<Duration>,
    waited: Duration,
    waits_since: Option<Instant>,
}

impl Rate {
    /// From now on something waits, or nothing does.
    fn watch(&mut self, waits: bool, now: Instant) {
        if !waits {
            self.waited = self.waited(now);
            self.waits_since = None;
        } else if self.waits_since.is_none() {
            self.waits_since = Some(now);
        }
    }

    fn waited(&self, now: Instant) -> Duration {
        self.waited + self.waits_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn note(&mut self, now: Instant) {
        if self.departures.len() == RATE_OVER {
            self.departures.pop_front();
        }
        self.departures.push_back(self.waited(now));
    }

    /// What so many departures have taken lately.
    fn time_for(&self, requests: usize, now: Instant) -> Duration {
        let Some(oldest) = self.departures.front() else { return Duration::ZERO };
        let over = self.waited(now).saturating_sub(*oldest);
        over.mul_f64(requests as f64 / self.departures.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nothing_waits_does_not_slow_the_queue_down() {
        let (mut rate, began) = (Rate::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        rate.watch(true, at(0));
        (1..=4).for_each(|second| rate.note(at(second)));
        rate.watch(false, at(4));
        let busy = rate.time_for(8, at(4));
        assert_eq!(busy, Duration::from_secs(6));
        rate.watch(true, at(1000));
        assert_eq!(rate.time_for(8, at(1000)), busy);
    }
}
