//! The connection to NATS: two clients per process, so that token frames never wait behind requests.

mod wire;

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::FutureExt;
use messages::{Envelope, Namespace, codec};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use wire::Wire;
pub use wire::{Link, log_in};

/// A body that every deployment must be able to carry: 8192 tokens and their text with room to spare.
pub const LEAST_MAX_PAYLOAD: usize = 1 << 20;

/// Where the bus is and who asks.
#[derive(Debug, Clone)]
pub struct BusOptions {
    pub urls: Vec<String>,
    pub namespace: Namespace,
    /// A NATS credentials file.
    pub credentials: Option<std::path::PathBuf>,
    /// Shown by the server beside the connection.
    pub name: String,
}

/// Why the bus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("no nats server answers at {urls}: {reason}; start one (`nats-server -js`) or set --nats-url")]
    Unreachable { urls: String, reason: String },
    #[error("'{url}' is no nats url (nats://host:port): {reason}")]
    BadUrl { url: String, reason: String },
    #[error("nats credentials file {path}: {reason}")]
    Credentials { path: String, reason: String },
    #[error(
        "the nats server takes messages of {found} bytes at most; stator needs {LEAST_MAX_PAYLOAD} or more: \
         set max_payload to 8MB in its configuration"
    )]
    SmallPayload { found: usize },
    #[error("jetstream is not usable: {0}; start nats-server with -js (2.11 or newer)")]
    JetStream(String),
    #[error("subscription failed: {0}")]
    Subscribe(String),
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("nobody serves {0}")]
    NoResponders(String),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("message of {size} bytes, the bus takes {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("bus: {0}")]
    Bus(String),
    #[error(transparent)]
    Decode(#[from] codec::DecodeError),
}

/// Numbers of the connections of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    pub requests: u64,
    pub frames: u64,
}

#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    requests: Wire,
    frames: Wire,
    namespace: Namespace,
}

impl Bus {
    /// Connects and checks what the server can carry.
    ///
    /// # Errors
    /// [`BusError`] says what is missing and what to do.
    pub async fn connect(options: &BusOptions) -> Result<Self, BusError> {
        let requests = Wire::dial(options, "requests").await?;
        let frames = Wire::dial(options, "frames").await?;
        let found = requests.client.max_payload();
        if found < LEAST_MAX_PAYLOAD {
            return Err(BusError::SmallPayload { found });
        }
        Ok(Self { inner: Arc::new(Inner { requests, frames, namespace: options.namespace.clone() }) })
    }

    pub fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    /// Largest body in bytes, as the server says.
    pub fn max_payload(&self) -> usize {
        self.inner.requests.client.max_payload()
    }

    /// Whether the server is one of a cluster.
    pub fn is_clustered(&self) -> bool {
        self.inner.requests.client.server_info().cluster.is_some()
    }

    /// State of the connection of requests, control messages and leases.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.inner.requests.link.clone()
    }

    /// State of the connection of frames.
    pub fn frames_link(&self) -> watch::Receiver<Link> {
        self.inner.frames.link.clone()
    }

    /// `None` while a connection is away: who hears nothing over it may not judge others by that.
    pub fn epochs(&self) -> Option<Epochs> {
        let [requests, frames] = [&self.inner.requests, &self.inner.frames].map(|wire| *wire.link.borrow());
        let whole = requests.cut_off.is_none() && frames.cut_off.is_none();
        whole.then_some(Epochs { requests: requests.epoch, frames: frames.epoch })
    }

    /// How long requests, control messages and leases of this process have been cut off from the bus, if they are.
    pub fn cut_off(&self) -> Option<Duration> {
        self.inner.requests.link.borrow().cut_off.map(|since| since.elapsed())
    }

    /// Sends a request and waits for its one reply.
    ///
    /// # Errors
    /// [`AskError`]; a `TimedOut` request may still be served.
    pub async fn ask<M: Serialize, R: DeserializeOwned>(
        &self,
        subject: String,
        envelope: Option<&Envelope>,
        message: &M,
        wait: Duration,
    ) -> Result<R, AskError> {
        let reply = self.ask_encoded(subject, envelope, codec::encode(message), wait).await?;
        Ok(codec::decode(&reply)?)
    }

    /// [`Self::ask`] with an encoded body.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_encoded(
        &self,
        subject: String,
        envelope: Option<&Envelope>,
        body: Bytes,
        wait: Duration,
    ) -> Result<Bytes, AskError> {
        self.fits(body.len())?;
        let request = async_nats::Request::new().payload(body).timeout(Some(wait));
        let request = match envelope {
            Some(envelope) => request.headers(headers(envelope)),
            None => request,
        };
        match self.inner.requests.client.send_request(subject.clone(), request).await {
            Ok(reply) => Ok(reply.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => AskError::NoResponders(subject),
                RequestErrorKind::TimedOut => AskError::TimedOut(wait),
                _ => AskError::Bus(error.to_string()),
            }),
        }
    }

    /// Sends a message that expects no answer. While the bus is cut off it waits, as long as the client has room.
    ///
    /// # Errors
    /// If it is too large for the bus.
    pub fn tell<M: Serialize>(
        &self,
        subject: String,
        envelope: Option<&Envelope>,
        message: &M,
    ) -> Result<(), AskError> {
        let body = codec::encode(message);
        self.fits(body.len())?;
        let headers = envelope.map(headers).unwrap_or_default();
        post(&self.inner.requests.client, subject, headers, body);
        Ok(())
    }

    /// Publishes on the frames connection; returns false if it could not be queued (the reader will see a gap).
    pub fn post_frames(&self, subject: String, body: Bytes) -> bool {
        let Wire { client, link } = &self.inner.frames;
        link.borrow().cut_off.is_none() && post(client, subject, HeaderMap::new(), body)
    }

    /// Listens to a subject (or a pattern of them) on the requests connection.
    ///
    /// # Errors
    /// If the subscription cannot be made.
    pub async fn listen(&self, subject: String) -> Result<async_nats::Subscriber, BusError> {
        let subscribed = self.requests().subscribe(subject).await;
        subscribed.map_err(|error| BusError::Subscribe(error.to_string()))
    }

    /// Answers a request.
    pub fn reply(&self, subject: String, body: Bytes) {
        if !post(self.requests(), subject, HeaderMap::new(), body) {
            tracing::warn!("reply dropped: the bus takes no more");
        }
    }

    pub(crate) fn requests(&self) -> &Client {
        &self.inner.requests.client
    }

    pub(crate) fn frames(&self) -> &Client {
        &self.inner.frames.client
    }

    /// Waits until everything sent so far is on the wire, at most `wait`.
    pub async fn flush(&self, wait: Duration) {
        let both = async {
            let _ = self.frames().flush().await;
            let _ = self.requests().flush().await;
        };
        let _ = tokio::time::timeout(wait, both).await;
    }

    fn fits(&self, size: usize) -> Result<(), AskError> {
        let limit = self.max_payload();
        if size > limit { Err(AskError::TooLarge { size, limit }) } else { Ok(()) }
    }
}

/// Hands a message to the client's queue without waiting.
fn post(client: &Client, subject: String, headers: HeaderMap, body: Bytes) -> bool {
    let publish = async {
        if headers.is_empty() {
            client.publish(subject, body).await
        } else {
            client.publish_with_headers(subject, headers, body).await
        }
    };
    matches!(tokio::task::unconstrained(publish).now_or_never(), Some(Ok(())))
}

fn headers(envelope: &Envelope) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.pairs() {
        headers.insert(name, value.as_str());
    }
    headers
}
