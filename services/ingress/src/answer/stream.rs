//! The body of a streamed answer: all that is ready goes out in one write.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use messages::Fault;
use tokio::time::{Instant, Sleep, sleep};

use super::{Script, json};
use crate::{
    api::ApiError,
    figures::Stopwatch,
    road::{Event, Journey},
};

/// A stream that has nothing to say yet says so this often.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Room for the chunks of a few steps: once they are on the wire it is used again.
const BUFFER: usize = 4096;
const KEEP_ALIVE_COMMENT: &[u8] = b": keep-alive\n\n";

/// Server-sent events of one answer. Dropped before its end, it cancels the request.
pub struct EventStream<G> {
    journey: Journey,
    script: Script,
    stopwatch: Stopwatch,
    events: Vec<Event>,
    buffer: BytesMut,
    silence: Pin<Box<Sleep>>,
    ended: bool,
    /// Held until the answer is written or given up.
    _guard: G,
}

impl<G> EventStream<G> {
    pub fn new(journey: Journey, script: Script, stopwatch: Stopwatch, guard: G) -> Self {
        let (events, buffer) = (Vec::new(), BytesMut::with_capacity(BUFFER));
        let silence = Box::pin(sleep(KEEP_ALIVE));
        Self { journey, script, stopwatch, events, buffer, silence, ended: false, _guard: guard }
    }

    fn write(&mut self) -> Bytes {
        for event in self.events.drain(..) {
            self.stopwatch.event(&event);
            self.script.event(&event, &mut self.buffer);
        }
        self.buffer.split().freeze()
    }

    fn finish(&mut self) -> Bytes {
        self.ended = true;
        self.stopwatch.finish(200);
        self.script.finish(&mut self.buffer);
        self.buffer.split().freeze()
    }

    fn fail(&mut self, fault: Fault) -> Bytes {
        self.ended = true;
        let error = ApiError::from(fault);
        self.stopwatch.finish(error.status.as_u16());
        json::raw(&mut self.buffer, "data: ");
        json::value(&mut self.buffer, &error.to_json());
        json::raw(&mut self.buffer, "\n\n");
        self.buffer.split().freeze()
    }

    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        ready!(self.silence.as_mut().poll(cx));
        self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        // The new moment has to be waited for.
        let _ = self.silence.as_mut().poll(cx);
        Poll::Ready(Bytes::from_static(KEEP_ALIVE_COMMENT))
    }
}

impl<G: Unpin> Stream for EventStream<G> {
    type Item = Result<Bytes, actix_web::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            let bytes = match this.journey.poll_events(cx, &mut this.events) {
                Poll::Ready(Some(Ok(()))) => this.write(),
                Poll::Ready(None) => this.finish(),
                Poll::Ready(Some(Err(fault))) => this.fail(fault),
                Poll::Pending if this.stopwatch.has_begun() => return Poll::Pending,
                Poll::Pending => ready!(this.keep_alive(cx)),
            };
            // Tokens without text leave nothing to write.
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }
}
