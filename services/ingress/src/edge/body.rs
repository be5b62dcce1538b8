//! Reading a request body within bounds of size and time.

use std::time::Duration;

use actix_web::{HttpRequest, http::header, web::Payload};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use crate::api::ApiError;

/// Reads a whole body.
///
/// # Errors
/// 413 beyond `limit` bytes, 408 after `wait`, 400 if the client ends early.
pub async fn read(
    request: &HttpRequest,
    mut payload: Payload,
    limit: usize,
    wait: Duration,
) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|size| size > limit as u64) {
        return Err(ApiError::body_too_large(announced, limit));
    }
    let gather = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| ApiError::body_incomplete(&format!("broke off: {error}")))?;
            if body.len() + chunk.len() > limit {
                return Err(ApiError::body_too_large(None, limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    match tokio::time::timeout(wait, gather).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::body_too_slow(wait)),
    }
}
