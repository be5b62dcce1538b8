//! How a service and the routes of its process reach its lifecycle.

use std::future::Future;

use actix::Addr;
use messages::lease::Lease;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::root::{Drain, Ready, Root};

/// Handle to the lifecycle that [`Root`] owns.
#[derive(Clone)]
pub struct Life {
    pub(crate) root: Addr<Root>,
    pub(crate) draining: CancellationToken,
    pub(crate) drained: CancellationToken,
    /// Answers to those who wait for the end, which does not come before they have left.
    pub(crate) farewells: TaskTracker,
}

impl Life {
    /// Says that the instance takes work; `amend` completes its lease.
    pub async fn ready(&self, amend: impl FnOnce(&mut Lease) + Send + 'static) {
        let _ = self.root.send(Ready { amend: Box::new(amend) }).await;
    }

    pub fn drain(&self, now: bool) {
        if self.root.try_send(Drain { now }).is_err() {
            tracing::warn!("drain not taken: the root actor is gone or its mailbox full");
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Completes when nothing is left to be done or sent.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        self.drained.clone().cancelled_owned()
    }
}
