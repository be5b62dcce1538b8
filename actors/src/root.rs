//! The root actor of an instance: it owns the lifecycle.
//!
//! `Starting → Ready → Draining`, one way. Signals, control messages and the admin listener all send it messages;
//! the lease, the lanes and the service watch what it decides.

use std::time::Instant;

use actix::{Actor, Context, Handler, Message};
use messages::lease::{Lease, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct Root {
    lease: watch::Sender<Lease>,
    ends: Ends,
    started: Instant,
}

/// How far the end of the instance has come.
#[derive(Clone, Default)]
pub(crate) struct Ends {
    /// Work ends.
    pub draining: CancellationToken,
    /// It ends at once.
    pub stopping: CancellationToken,
    /// None is left, and everything is said.
    pub drained: CancellationToken,
}

/// The instance can take work; `amend` adds to the lease what only became known at start.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready {
    pub amend: Box<dyn FnOnce(&mut Lease) + Send>,
}

/// Finish and go; a second time, or `now`, means at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain {
    pub now: bool,
}

/// Asks for the state of the instance.
#[derive(Message)]
#[rtype(result = "Observed")]
pub struct Observe;

#[derive(Debug, Clone, serde::Serialize, actix::MessageResponse)]
pub struct Observed {
    pub lease: Lease,
    pub uptime_seconds: u64,
    /// Drained: nobody misses the process if it is killed now.
    pub safe_to_stop: bool,
}

impl Root {
    pub(crate) fn new(lease: watch::Sender<Lease>, ends: Ends) -> Self {
        Self { lease, ends, started: Instant::now() }
    }
}

impl Actor for Root {
    type Context = Context<Self>;
}

impl Handler<Ready> for Root {
    type Result = ();

    fn handle(&mut self, Ready { amend }: Ready, _: &mut Self::Context) {
        self.lease.send_modify(|lease| {
            amend(lease);
            if lease.state == State::Starting {
                lease.state = State::Ready;
            }
        });
        tracing::info!(instance = %self.lease.borrow().instance, "ready");
    }
}

impl Handler<Drain> for Root {
    type Result = ();

    fn handle(&mut self, Drain { now }: Drain, _: &mut Self::Context) {
        if now || self.ends.draining.is_cancelled() {
            tracing::info!("stopping now");
            self.ends.stopping.cancel();
        } else {
            tracing::info!("draining");
        }
        self.lease.send_modify(|lease| lease.state = State::Draining);
        self.ends.draining.cancel();
    }
}

impl Handler<Observe> for Root {
    type Result = Observed;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Observed {
        Observed {
            lease: self.lease.borrow().clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            safe_to_stop: self.ends.drained.is_cancelled(),
        }
    }
}
