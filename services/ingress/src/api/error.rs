//! Errors in OpenAI's exact form: `{"error":{"message","type","param","code"}}`.

use std::{fmt, time::Duration};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use messages::{Fault, FaultCode};
use serde_json::{Value, json};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
/// What a client is told to wait when nobody knows better.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub code: Option<&'static str>,
    pub param: Option<String>,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: Some(code), param: None, message: message.into(), retry_after: None }
    }

    /// A field of the request is wrong.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, code, message) }
    }

    /// A value that this server does not serve.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, "unsupported_value", message)
    }

    pub fn missing(param: &str) -> Self {
        Self::invalid(param, "missing_required_parameter", format!("Missing required parameter: '{param}'."))
    }

    /// The body is not JSON.
    pub fn malformed(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        let message = format!(
            "We could not parse the JSON body of your request: {what} at line {line} column {column}."
        );
        Self { code: Some("invalid_json"), ..Self::new(StatusCode::BAD_REQUEST, INVALID, "", message) }
    }

    pub fn body_too_large(size: Option<u64>, limit: usize) -> Self {
        let message = match size {
            Some(size) => format!("The request body is {size} bytes long, the limit is {limit} bytes."),
            None => format!("The request body is longer than the limit of {limit} bytes."),
        };
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", message)
    }

    pub fn body_incomplete(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_body", format!("The request body {why}."))
    }

    pub fn body_too_slow(limit: Duration) -> Self {
        let message = format!("The request body did not arrive within {} seconds.", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout", message)
    }

    pub fn model_not_found(name: &str) -> Self {
        let message = format!("The model '{name}' does not exist or you do not have access to it.");
        let param = Some("model".to_owned());
        Self { param, ..Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message) }
    }

    pub fn unknown_route(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID,
            "unknown_url",
            format!("Unknown request URL: {method} {path}."),
        )
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_supported", message)
    }

    pub fn no_key() -> Self {
        let message =
            "You didn't provide an API key. Send it in the Authorization header: 'Bearer YOUR_KEY'.";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, "missing_api_key", message)
    }

    pub fn wrong_key() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", "Incorrect API key provided.")
    }

    /// A header that takes the admin key.
    pub fn admins_only(header: &'static str) -> Self {
        let message = format!("The header '{header}' takes the admin key as bearer token.");
        let error = Self::new(StatusCode::FORBIDDEN, INVALID, "admin_key_needed", message);
        Self { param: Some(header.to_owned()), ..error }
    }

    /// This ingress serves as many requests as it may.
    pub fn too_many(limit: usize) -> Self {
        let message = format!("Too many requests at once: this server serves {limit}. Please retry shortly.");
        let retry_after = Some(RETRY_AFTER);
        let error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        Self { retry_after, ..error }
    }

    pub fn draining() -> Self {
        Self::from(Fault::new(FaultCode::Draining, "This server is shutting down. Please retry."))
    }

    pub fn not_ready(reasons: &[String]) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "not_ready", reasons.join("; "));
        Self { retry_after: Some(RETRY_AFTER), ..error }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error", message)
    }

    /// The JSON body; also the data of an `error` event within a stream.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        use FaultCode as Code;
        let (status, kind, code) = match fault.code {
            Code::InvalidRequest => (400, INVALID, "invalid_value"),
            Code::ContextLengthExceeded => (400, INVALID, "context_length_exceeded"),
            Code::NeverFits => (400, INVALID, "kv_cache_exceeded"),
            Code::TooLarge => (413, INVALID, "request_too_large"),
            Code::ModelNotFound => (404, INVALID, "model_not_found"),
            Code::Overloaded => (503, "overloaded_error", "overloaded"),
            Code::Draining => (503, SERVER, "draining"),
            Code::NoInstance => (503, SERVER, "no_instance"),
            Code::Unanswered => (503, SERVER, "unanswered"),
            Code::DeadlineExceeded => (504, "timeout_error", "deadline_exceeded"),
            Code::SlowClient => (408, INVALID, "slow_client"),
            Code::Cancelled => (499, INVALID, "cancelled"),
            Code::EngineFault => (500, SERVER, "engine_fault"),
            Code::Internal | Code::Unknown => (500, SERVER, "internal_error"),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let asked = fault.retry_after_ms.map(|ms| Duration::from_millis(ms.into()));
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then(|| asked.unwrap_or(RETRY_AFTER));
        Self { status, kind, code: Some(code), param: fault.param, message: fault.message, retry_after }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.kind, self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(wait) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, wait.as_secs_f64().ceil().max(1.0).to_string()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if self.code == Some("draining") {
            response.force_close();
        }
        response.json(self.to_json())
    }
}

#[cfg(test)]
mod tests;
