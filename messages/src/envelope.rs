use crate::id::{Attempt, RequestId};

/// What every single request and control message says in its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub request: RequestId,
    pub attempt: Attempt,
    /// Time left to the request; each hop takes off what it used, for clocks differ.
    pub deadline_ms: Option<u64>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The client's `x-request-id`: logged and echoed, never used to route or to find duplicates.
    pub label: Option<String>,
}

/// Header names on the bus.
pub mod header {
    pub const REQUEST: &str = "req";
    pub const ATTEMPT: &str = "attempt";
    pub const DEADLINE_MS: &str = "deadline-ms";
    pub const TRACEPARENT: &str = "traceparent";
    pub const LABEL: &str = "label";
}

/// A header that is missing or malformed.
#[derive(Debug, thiserror::Error)]
#[error("header '{0}' is missing or malformed")]
pub struct BadHeader(pub &'static str);

impl Envelope {
    pub fn new(request: RequestId) -> Self {
        Self { request, attempt: Attempt::FIRST, deadline_ms: None, traceparent: None, label: None }
    }

    /// The headers to send.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        [
            Some((header::REQUEST, self.request.to_string())),
            Some((header::ATTEMPT, self.attempt.to_string())),
            self.deadline_ms.map(|ms| (header::DEADLINE_MS, ms.to_string())),
            self.traceparent.clone().map(|value| (header::TRACEPARENT, value)),
            self.label.clone().map(|value| (header::LABEL, value)),
        ]
        .into_iter()
        .flatten()
    }

    /// Reads the headers back through `get`.
    ///
    /// # Errors
    /// If the request id or attempt is missing, or any of them is malformed.
    pub fn read<'a>(get: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, BadHeader> {
        let number =
            |name| get(name).map(|text| text.parse::<u64>().map_err(|_| BadHeader(name))).transpose();
        Ok(Self {
            request: get(header::REQUEST)
                .and_then(|text| text.parse().ok())
                .ok_or(BadHeader(header::REQUEST))?,
            attempt: number(header::ATTEMPT)?
                .and_then(|n| u32::try_from(n).ok())
                .map(Attempt)
                .ok_or(BadHeader(header::ATTEMPT))?,
            deadline_ms: number(header::DEADLINE_MS)?,
            traceparent: get(header::TRACEPARENT).map(str::to_owned),
            label: get(header::LABEL).map(str::to_owned),
        })
    }
}
