//! The client's name for a request: `x-request-id`, logged and echoed, never used to route.

use actix_web::{
    HttpMessage, HttpRequest,
    http::header::{HeaderMap, HeaderName},
};
use messages::RequestId;

pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST: usize = 128;

/// A request's label, kept with it.
#[derive(Debug, Clone)]
pub struct Label(pub String);

impl Label {
    /// What the client sent, if it is fit to be logged and sent back, else a fresh one.
    pub fn read(headers: &HeaderMap) -> Self {
        let sent = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let fit = |text: &&str| {
            (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| (b'!'..=b'~').contains(&byte))
        };
        Self(sent.filter(fit).map_or_else(|| RequestId::mint().to_string(), str::to_owned))
    }

    pub fn of(request: &HttpRequest) -> Self {
        request.extensions().get().cloned().unwrap_or_else(|| Self::read(request.headers()))
    }
}
