//! API keys.

use std::path::Path;

use actix_web::http::header::HeaderValue;
use anyhow::Context;

use crate::api::ApiError;

/// Routes that need no key: probes and figures.
const OPEN: [&str; 4] = ["/live", "/health", "/metrics", "/openapi.json"];

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Caller {
    /// No key was needed.
    #[default]
    Anyone,
    Tenant(String),
    Admin,
}

impl Caller {
    /// Whose share of the capacity the request takes.
    pub fn tenant(self) -> Option<String> {
        match self {
            Self::Anyone => None,
            Self::Tenant(name) => Some(name),
            Self::Admin => Some("admin".to_owned()),
        }
    }
}

/// The keys that are let in; with none, everybody is.
#[derive(Debug, Default)]
pub struct Keys {
    tenants: Vec<Key>,
    admin: Option<String>,
}

#[derive(Debug)]
struct Key {
    tenant: String,
    secret: String,
}

impl Keys {
    /// # Errors
    /// If the file cannot be read, or holds no key.
    pub fn load(keys: &[String], file: Option<&Path>, admin: Option<&str>) -> anyhow::Result<Self> {
        let mut tenants: Vec<Key> = keys.iter().map(|secret| Key::unnamed(secret)).collect();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("--api-key-file {} cannot be read", path.display()))?;
            let lines = text.lines().map(str::trim);
            let listed: Vec<Key> =
                lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(Key::read).collect();
            anyhow::ensure!(!listed.is_empty(), "--api-key-file {} holds no key", path.display());
            tenants.extend(listed);
        }
        anyhow::ensure!(tenants.iter().all(|key| !key.secret.is_empty()), "an API key is empty");
        Ok(Self { tenants, admin: admin.map(str::to_owned) })
    }

    /// # Errors
    /// 401 if a key is needed and none, or a wrong one, was sent.
    pub fn check(&self, path: &str, authorization: Option<&HeaderValue>) -> Result<Caller, ApiError> {
        let token = authorization.and_then(|header| {
            let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        if self.admin.as_ref().zip(token).is_some_and(|(admin, token)| same(admin, token)) {
            return Ok(Caller::Admin);
        }
        if self.tenants.is_empty() || OPEN.contains(&path) {
            return Ok(Caller::Anyone);
        }
        let given = token.ok_or_else(ApiError::no_key)?;
        // Every key is compared in full: the time taken tells nothing.
        let known =
            self.tenants.iter().fold(None, |known, key| same(&key.secret, given).then_some(key).or(known));
        known.map(|key| Caller::Tenant(key.tenant.clone())).ok_or_else(ApiError::wrong_key)
    }
}

impl Key {
    /// `NAME KEY` or `KEY`.
    fn read(line: &str) -> Self {
        match line.split_once(char::is_whitespace) {
            Some((name, secret)) => Self { tenant: name.to_owned(), secret: secret.trim().to_owned() },
            None => Self::unnamed(line),
        }
    }

    /// Known to figures and routers by a hash, which tells nothing of the key.
    fn unnamed(secret: &str) -> Self {
        let hash = blake3::derive_key("stator 2026 tenant of an API key", secret.as_bytes());
        let head: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { tenant: format!("key-{head}"), secret: secret.to_owned() }
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
        let keys = Keys::load(&["one".to_owned(), "two".to_owned()], None, None).unwrap();
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

    #[test]
    fn a_key_has_its_tenants_name_and_the_admin_key_opens_without_being_listed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# team keys\nresearch  alpha\nbeta\n").unwrap();
        let keys = Keys::load(&[], Some(file.path()), Some("root")).unwrap();
        let who = |key: &str| {
            let header = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
            keys.check("/v1/models", Some(&header)).ok().and_then(Caller::tenant)
        };
        assert_eq!(who("alpha").as_deref(), Some("research"));
        assert_eq!(who("root").as_deref(), Some("admin"));
        let unnamed = who("beta").unwrap();
        assert!(unnamed.starts_with("key-") && !unnamed.contains("beta"), "{unnamed}");
        assert_eq!(who("research"), None);
    }
}
