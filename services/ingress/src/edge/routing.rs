//! What the headers of a request say of where it should go, and the header that tells where to read where it went.

use actix_web::{
    HttpMessage, HttpRequest,
    dev::ServiceResponse,
    http::header::{HeaderName, HeaderValue},
};
use messages::{InstanceId, RequestId, submit::Routing};

use super::keys::Caller;
use crate::api::ApiError;

/// Names a conversation: its requests go to where its last one went.
const SESSION: &str = "x-session-id";
const LONGEST_SESSION: usize = 256;
/// Names the one engine that may serve; for administrators.
const PIN: &str = "x-stator-instance";
/// `1` asks for [`REQUESTS`].
const EXPLAIN: &str = "x-stator-explain";
/// The bus ids of the request's prompts: what the routers' `/admin/decisions/{id}` goes by.
const REQUESTS: HeaderName = HeaderName::from_static("x-stator-requests");

/// Bus ids, kept with a request.
#[derive(Clone)]
struct Explained(Vec<RequestId>);

/// Reads the hints.
///
/// # Errors
/// If a header is malformed, or one that only administrators may send comes from somebody else.
pub fn read(request: &HttpRequest) -> Result<Routing, ApiError> {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let session = match header(SESSION) {
        Some(text) if !(1..=LONGEST_SESSION).contains(&text.len()) => {
            let message = format!(
                "Invalid header '{SESSION}': expected 1 to {LONGEST_SESSION} printable ASCII characters."
            );
            return Err(ApiError::invalid(SESSION, "invalid_value", message));
        }
        session => session.map(str::to_owned),
    };
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let pin = header(PIN).map(|name| pinned(name, &caller)).transpose()?;
    Ok(Routing { session, pin, tenant: caller.tenant() })
}

fn pinned(name: &str, caller: &Caller) -> Result<InstanceId, ApiError> {
    if *caller != Caller::Admin {
        return Err(ApiError::admins_only(PIN));
    }
    name.parse()
        .map_err(|error| ApiError::invalid(PIN, "invalid_value", format!("Invalid header '{PIN}': {error}.")))
}

/// Keeps the bus ids of a request whose client wants to read where it went.
pub fn keep(request: &HttpRequest, ids: &[RequestId]) {
    if request.headers().get(EXPLAIN).is_some_and(|value| value == "1") {
        request.extensions_mut().insert(Explained(ids.to_vec()));
    }
}

/// Adds what [`keep`] kept.
pub fn tell<B>(response: &mut ServiceResponse<B>) {
    let kept = response.request().extensions().get::<Explained>().cloned();
    let Some(Explained(ids)) = kept else { return };
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    if let Ok(value) = HeaderValue::from_str(&ids.join(",")) {
        response.headers_mut().insert(REQUESTS, value);
    }
}
