//! The lanes on which work reaches an instance: requests and, apart from them so that they never wait behind work, control
//! messages (to the pool, to this instance).

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use messages::{
    Envelope, RequestId, RunId, codec,
    control::{Attach, Cancel, Control, Drained, Pong},
    frame::Pulse,
    lease::State,
    prefill::PrefillNews,
    subject,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    bus::{Bus, BusError},
    life::Life,
    process::Context,
};

/// What an instance does with what arrives. All methods must return at once: work goes into a bounded queue by
/// `try_send`, and a full queue is a refusal. Pings and drains are answered by the lane.
pub trait Service: Send + Sync + 'static {
    type Body: DeserializeOwned + Send;

    fn receive(&self, envelope: Envelope, body: Self::Body, reply: Responder);

    fn cancel(&self, cancel: Cancel);

    /// Whether the request or run that a ping names is here.
    fn knows(&self, request: Option<RequestId>, run: Option<RunId>) -> bool;

    /// How the running step is, where steps run.
    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    /// Only engines keep logs of runs.
    fn attach(&self, _attach: Attach, _reply: Responder) {}

    /// Only engines have a prefix cache.
    fn snapshot(&self, _reply: Responder) {}

    /// Only decode engines have prompts computed elsewhere.
    fn prefill(&self, _news: PrefillNews, _reply: Responder) {}
}

/// Where an answer goes; dropped unanswered, the asker runs into its time limit.
pub struct Responder {
    bus: Bus,
    to: Option<String>,
}

impl Responder {
    pub fn send<M: Serialize>(self, message: &M) {
        if let Some(to) = self.to {
            self.bus.reply(to, codec::encode(message));
        }
    }
}

/// Subscribes and serves until the process ends: requests go on arriving while it drains, so that it can refuse them.
///
/// # Errors
/// If a subscription cannot be made.
pub async fn serve<S: Service>(context: &Context, service: Arc<S>) -> Result<(), BusError> {
    let (bus, me) = (&context.bus, &context.me);
    let ns = bus.namespace();
    let requested = bus.listen(subject::instance_requests(ns, me.role, &me.pool, &me.instance)).await?;
    let control = bus.listen(subject::instance_control(ns, me.role, &me.pool, &me.instance)).await?;
    let pool_control = bus.listen(subject::pool_control(ns, me.role, &me.pool)).await?;

    tokio::spawn(requests(bus.clone(), requested, service.clone()));
    for lane in [control, pool_control] {
        tokio::spawn(controls(context.clone(), lane, service.clone()));
    }
    Ok(())
}

async fn requests<S: Service>(bus: Bus, mut lane: Subscriber, service: Arc<S>) {
    while let Some(message) = lane.next().await {
        request(&bus, message, &*service);
    }
}

fn request<S: Service>(bus: &Bus, message: Message, service: &S) {
    let reply = Responder { bus: bus.clone(), to: message.reply.as_ref().map(ToString::to_string) };
    let headers = message.headers.as_ref();
    let envelope =
        Envelope::read(|name| headers.and_then(|headers| headers.get(name)).map(|value| value.as_str()));
    match (envelope, codec::decode(&message.payload)) {
        (Ok(envelope), Ok(body)) => service.receive(envelope, body, reply),
        (Err(error), _) => ignored(&message, &error),
        (_, Err(error)) => ignored(&message, &error),
    }
}

async fn controls<S: Service>(context: Context, mut lane: Subscriber, service: Arc<S>) {
    while let Some(message) = lane.next().await {
        let reply =
            Responder { bus: context.bus.clone(), to: message.reply.as_ref().map(ToString::to_string) };
        match codec::decode(&message.payload) {
            Ok(control) => obey(&context, control, &*service, reply),
            Err(error) => ignored(&message, &error),
        }
    }
}

fn obey<S: Service>(context: &Context, control: Control, service: &S, reply: Responder) {
    match control {
        Control::Cancel(cancel) => service.cancel(cancel),
        Control::Attach(attach) => service.attach(attach, reply),
        Control::Ping { request, run } => reply.send(&Pong {
            instance: context.me.instance.clone(),
            state: if context.life.is_draining() { State::Draining } else { State::Ready },
            pulse: service.pulse(),
            knows_run: service.knows(request, run),
        }),
        Control::KvSnapshot {} => service.snapshot(reply),
        Control::Prefill(news) => service.prefill(news, reply),
        Control::Drain { now } => drain(&context.life, now, reply),
    }
}

fn drain(life: &Life, now: bool, reply: Responder) {
    life.drain(now);
    let drained = life.drained();
    life.farewells.spawn(async move {
        drained.await;
        reply.send(&Drained { safe_to_stop: true });
    });
}

fn ignored(message: &Message, error: &dyn std::fmt::Display) {
    metrics::counter!("stator_messages_malformed_total").increment(1);
    tracing::warn!(subject = %message.subject, bytes = message.payload.len(), %error, "message ignored");
}
