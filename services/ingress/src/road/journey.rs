//! One HTTP request on the road: a trip for each of its prompts, and the answer they fill.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use messages::{Fault, RequestId};

use super::outlet::{Event, Outlet};

/// The client's side of a request. Dropped before the end, it cancels what is left.
#[derive(Debug)]
pub struct Journey {
    outlet: Arc<Outlet>,
    /// One for each prompt.
    requests: Vec<RequestId>,
    /// Events put back to be taken first.
    kept: Vec<Event>,
}

impl Journey {
    pub fn new(outlet: Arc<Outlet>, requests: Vec<RequestId>) -> Self {
        Self { outlet, requests, kept: Vec::new() }
    }

    /// The bus ids of the prompts.
    pub fn requests(&self) -> &[RequestId] {
        &self.requests
    }

    /// Ends all of it.
    pub fn done(&self) -> &tokio_util::sync::CancellationToken {
        self.outlet.done()
    }

    /// Waits until every prompt is understood and in custody.
    ///
    /// # Errors
    /// The first fault, which no byte of an answer has preceded.
    pub async fn opened(&self) -> Result<(), Fault> {
        poll_fn(|cx| self.outlet.poll_open(cx)).await
    }

    /// Takes the events that wait; `None` after the last.
    pub fn poll_events(
        &mut self,
        cx: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Poll<Option<Result<(), Fault>>> {
        if !self.kept.is_empty() {
            events.append(&mut self.kept);
            return Poll::Ready(Some(Ok(())));
        }
        self.outlet.poll_take(cx, events)
    }

    /// Waits for more events; false when there are none.
    ///
    /// # Errors
    /// The fault that ended the request.
    pub async fn more(&mut self, events: &mut Vec<Event>) -> Result<bool, Fault> {
        match poll_fn(|cx| self.poll_events(cx, events)).await {
            Some(Ok(())) => Ok(true),
            Some(Err(fault)) => Err(fault),
            None => Ok(false),
        }
    }

    /// Puts events back.
    pub fn keep(&mut self, events: Vec<Event>) {
        self.kept = events;
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        self.outlet.done().cancel();
    }
}
