//! All requests on their way, and the reader of their frames.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actors::{Context, frames::FrameSink, suspects::Suspects};
use messages::{
    Fault, InstanceId, RequestId, Role, RunId,
    control::Cancel,
    frame::{Alive, TextBatch, TextDelta},
    lease::{Lease, State},
};
use parking_lot::RwLock;
use tokio::{runtime::Handle, sync::broadcast::error::RecvError};

use super::{
    outlet::Backlog,
    pace::Pace,
    trip::{self, Trip, Upshot},
};

const TELL_BACKLOG_EVERY: Duration = Duration::from_secs(1);

/// Everything that requests on their way share.
pub struct Desk {
    pub(super) context: Context,
    /// Requests are driven here, on many threads: HTTP workers have one each.
    pub(super) runtime: Handle,
    pub(super) suspects: Suspects,
    pub(super) repairs: Pace,
    /// How long a request waits for a first instance.
    pub(super) hold: Duration,
    pub(super) backlog: Arc<Backlog>,
    trips: RwLock<HashMap<RequestId, Arc<Trip>>>,
    turn: AtomicUsize,
}

impl Desk {
    /// Call on the multi-thread runtime.
    pub fn new(context: Context, hold: Duration, backlog: Backlog) -> Arc<Self> {
        Arc::new(Self {
            context,
            runtime: Handle::current(),
            suspects: Suspects::default(),
            repairs: Pace::default(),
            hold,
            backlog: Arc::new(backlog),
            trips: RwLock::default(),
            turn: AtomicUsize::new(0),
        })
    }

    /// Requests on their way.
    pub fn live(&self) -> usize {
        self.trips.read().len()
    }

    /// Ends all requests.
    pub fn fail_all(&self, fault: &Fault) {
        self.all().iter().for_each(|trip| trip.fail(fault.clone()));
    }

    pub(super) fn enter(&self, trip: Arc<Trip>) {
        self.trips.write().insert(trip.request, trip);
    }

    pub(super) fn leave(&self, request: RequestId) {
        self.trips.write().remove(&request);
    }

    pub(super) fn all(&self) -> Vec<Arc<Trip>> {
        self.trips.read().values().cloned().collect()
    }

    /// A number that is one more each time.
    pub(super) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// An instance is gone or hangs: whoever waits for it, and has not heard of it since it was `asked`, goes on elsewhere.
    pub(super) fn gave_no_sign(&self, instance: &InstanceId, asked: Instant) {
        self.suspects.mark(instance);
        for trip in self.all() {
            if trip.passage().gave_no_sign(instance, asked) {
                trip.wake();
            }
        }
    }

    /// A lease has ended.
    fn ended(&self, lease: &Lease) {
        for trip in self.all() {
            if trip.passage().departed(&lease.instance, lease.state == State::Draining) {
                trip.wake();
            }
        }
    }

    /// Follows the ends of leases, and tells how much waits for slow clients.
    pub async fn keep(self: Arc<Self>) {
        let mut departures = self.context.directory.departures();
        let backlog = metrics::gauge!("stator_ingress_backlog_bytes");
        let mut tick = tokio::time::interval(TELL_BACKLOG_EVERY);
        loop {
            let departure = tokio::select! {
                departure = departures.recv() => departure,
                _ = tick.tick() => {
                    backlog.set(self.backlog.held() as f64);
                    continue;
                }
            };
            match departure {
                Ok(lease) if lease.role != Role::Ingress => self.ended(&lease),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Ends the stream that holds most, for all streams together hold too much.
    fn shed(&self) {
        let largest = self.all().into_iter().max_by_key(|trip| trip.outlet.waiting());
        if let Some(trip) = largest.filter(|trip| trip.outlet.waiting() > 0) {
            trip.fail(trip::slow_client());
        }
    }

    /// Somebody works for a request, or an attempt at it, that is not here any more: the cancel did not reach it.
    fn exorcise(&self, from: &InstanceId, ghost: &Alive) {
        let Some(lease) = self.context.directory.lease(from) else { return };
        let cancel = Cancel { request: ghost.request, attempt: ghost.attempt, run: None, choice: None };
        self.send_cancel(lease.role, &lease.pool, Some(from), &cancel);
    }

    fn read(&self, batch: TextBatch, rest: &mut Rest) {
        let now = Instant::now();
        let trips = self.trips.read();
        let TextBatch { from, role, sampled_us, frames, alive, .. } = batch;
        let mut note = |trip: &Arc<Trip>, upshot: Upshot| match upshot {
            Upshot::Nothing => {}
            Upshot::Stray(run) => rest.strays.push((trip.clone(), run)),
            Upshot::Rival(run) => rest.rivals.push((trip.clone(), run)),
            Upshot::Crowded => rest.crowded = true,
        };
        for frame in frames {
            if let Some(trip) = trips.get(&frame.request) {
                note(trip, trip.frame(&from, role, frame, sampled_us, now));
            }
        }
        for sign in alive {
            match trips.get(&sign.request) {
                // The cancel of that attempt did not reach it.
                Some(trip) if sign.attempt < trip.passage().attempt() => rest.ghosts.push(sign),
                Some(trip) => note(trip, trip.alive(&from, role, &sign, now)),
                None => rest.ghosts.push(sign),
            }
        }
    }
}

/// What is done once the lock on the trips is released.
#[derive(Default)]
struct Rest {
    strays: Vec<(Arc<Trip>, RunId)>,
    rivals: Vec<(Arc<Trip>, RunId)>,
    ghosts: Vec<Alive>,
    crowded: bool,
}

impl FrameSink<TextDelta> for Desk {
    fn batch(&self, batch: TextBatch) {
        let (from, role) = (batch.from.clone(), batch.role);
        let mut rest = Rest::default();
        self.read(batch, &mut rest);
        for (trip, run) in rest.strays {
            self.cancel_stray(&trip, run, &from, role);
        }
        for (trip, run) in rest.rivals {
            self.let_go(&trip, run, &from);
        }
        for ghost in rest.ghosts {
            self.exorcise(&from, &ghost);
        }
        if rest.crowded {
            self.shed();
        }
    }

    fn lost(&self, from: &InstanceId) {
        let now = Instant::now();
        for trip in self.all() {
            if trip.passage().lost(from, now) {
                trip.wake();
            }
        }
    }

    fn was_cut_off(&self) {
        let now = Instant::now();
        for trip in self.all() {
            trip.passage().was_cut_off(now);
            trip.wake();
        }
    }
}
