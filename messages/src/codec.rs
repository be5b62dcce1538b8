//! MessagePack with field names: readers skip fields they do not know, writers may leave out defaults.

use serde::{
    Serialize,
    de::{DeserializeOwned, Error},
};

mod counts;

/// A body that is not the expected message.
#[derive(Debug, thiserror::Error)]
#[error("malformed {what}: {source}")]
pub struct DecodeError {
    what: &'static str,
    source: rmp_serde::decode::Error,
}

/// Encodes a message. Only types of this crate travel, and they all encode.
pub fn encode<T: Serialize>(message: &T) -> bytes::Bytes {
    rmp_serde::to_vec_named(message).expect("messages are plain data").into()
}

/// Decodes a message.
///
/// # Errors
/// If the bytes are not MessagePack of this type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let decoded = if counts::fit(body) {
        rmp_serde::from_slice(body)
    } else {
        Err(Error::custom("the body ends before the items that it announces"))
    };
    decoded.map_err(|source| DecodeError { what: short_name::<T>(), source })
}

fn short_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    let full = full.split('<').next().unwrap_or(full);
    full.rsplit("::").next().unwrap_or(full)
}
