//! API keys.

use std::path::Path;

use actix_web::http::header::HeaderValue;
use anyhow::Context;

use crate::api::ApiError;

/// Routes that need no key: probes and figures.
const OPEN: [&str; 4] = ["/live", "/health", "/metrics", "/openapi.json"];

/// The keys that are let in; with none, everybody is.
#[derive(Debug, Default)]
pub struct Keys(Vec<String>);

impl Keys {
    /// # Errors
    /// If the file cannot be read, or holds no key.
    pub fn load(keys: &[String], file: Option<&Path>) -> anyhow::Result<Self> {
        let mut all: Vec<String> = keys.to_vec();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("--api-key-file {} cannot be read", path.display()))?;
            let listed: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect();
            anyhow::ensure!(!listed.is_empty(), "--api-key-file {} holds no key", path.display());
            all.extend(listed.into_iter().map(str::to_owned));
        }
        anyhow::ensure!(all.iter().all(|key| !key.is_empty()), "an API key is empty");
        Ok(Self(all))
    }

    /// # Errors
    /// 401 if a key is needed and none, or a wrong one, was sent.
    pub fn check(&self, path: &str, authorization: Option<&HeaderValue>) -> Result<(), ApiError> {
        if self.0.is_empty() || OPEN.contains(&path) {
            return Ok(());
        }
        let header = authorization.ok_or_else(ApiError::no_key)?;
        let token = header.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let given = token.ok_or_else(ApiError::no_key)?;
        // Every key is compared in full: the time taken tells nothing.
        let known = self.0.iter().fold(false, |known, key| known | same(key, given));
        if known { Ok(()) } else { Err(ApiError::wrong_key()) }
    }
}

/// Compares in time that does not depend on where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(keys: &Keys, path: &str, header: Option<&str>) -> Option<&'static str> {
        let header = header.map(|value| HeaderValue::from_str(value).unwrap());
        keys.check(path, header.as_ref()).err().and_then(|error| error.code)
    }

    #[test]
    fn any_of_several_keys_opens_and_probes_need_none() {
        let keys = Keys::load(&["one".to_owned(), "two".to_owned()], None).unwrap();
        let cases = [
            ("/v1/models", Some("Bearer one"), None),
            ("/v1/models", Some("bearer two"), None),
            ("/v1/models", Some("Bearer three"), Some("invalid_api_key")),
            ("/v1/models", Some("Basic one"), Some("missing_api_key")),
            ("/v1/models", None, Some("missing_api_key")),
            ("/health", None, None),
        ];
        for (path, header, expected) in cases {
            assert_eq!(code(&keys, path, header), expected, "{path} {header:?}");
        }
    }

    #[test]
    fn without_keys_everybody_may_ask() {
        assert_eq!(code(&Keys::default(), "/v1/models", None), None);
    }
}
