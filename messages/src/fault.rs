use serde::{Deserialize, Serialize};

/// Why something was refused or failed, as it travels and as ingress turns it into an HTTP error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Fault {
    pub code: FaultCode,
    /// What, where, what to do: shown to the client.
    pub message: String,
    /// The request field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When a later try may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// A field of the request is wrong.
    InvalidRequest,
    /// Prompt and output do not fit the model's context.
    ContextLengthExceeded,
    /// The request can never fit the KV pool.
    NeverFits,
    /// The body does not fit the bus.
    TooLarge,
    ModelNotFound,
    /// A bounded queue is full.
    Overloaded,
    /// The instance is going away: another may serve.
    Draining,
    /// No instance of the pool is alive.
    NoInstance,
    /// Engines that were offered the request do not answer.
    Unanswered,
    DeadlineExceeded,
    /// The client reads too slowly.
    SlowClient,
    Cancelled,
    /// Engines died under this request.
    EngineFault,
    Internal,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Fault {
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after_ms: None }
    }

    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(FaultCode::InvalidRequest, message) }
    }

    #[must_use]
    pub fn retry_after(mut self, milliseconds: u32) -> Self {
        self.retry_after_ms = Some(milliseconds);
        self
    }

    /// Another instance may do what this one refused.
    pub fn retryable(&self) -> bool {
        matches!(
            self.code,
            FaultCode::Overloaded | FaultCode::Draining | FaultCode::NoInstance | FaultCode::Unanswered
        )
    }
}
