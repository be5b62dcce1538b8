use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Separates clusters that share a NATS account: the first token of every subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Namespace(String);

/// Instances of one role that serve one model revision. Ingress has the one pool `http`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pool(String);

/// One running process of a service; drawn anew at every start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(String);

/// A name that is no single token of a NATS subject.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' must be 1 to 64 characters of a-z, 0-9, '-' and '_'")]
pub struct BadName(String);

fn subject_token(name: &str) -> Result<String, BadName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(BadName(name.to_owned()))
    }
}

macro_rules! name_type {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(name: &str) -> Result<Self, BadName> {
                subject_token(name).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
name_type!(Namespace);
name_type!(Pool);
name_type!(InstanceId);

impl Pool {
    /// The pool of one revision of a served model: its name as a subject token, then the head of the revision.
    pub fn of_model(served_name: &str, revision: &str) -> Self {
        let slug: String = served_name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(40)
            .collect();
        let head: String = revision.chars().filter(char::is_ascii_hexdigit).take(8).collect();
        Self(format!("{slug}-{}", head.to_ascii_lowercase()))
    }

    /// The pool of every router: each routes for all models.
    pub fn routers() -> Self {
        Self("all".to_owned())
    }

    /// The pool of every ingress.
    pub fn http() -> Self {
        Self("http".to_owned())
    }
}

impl InstanceId {
    /// A fresh id such as `decode-1f0c9a3e5b7d`.
    pub fn draw(role: Role) -> Self {
        Self(format!("{role}-{:012x}", rand::random::<u64>() >> 16))
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ingress,
    Tokenizer,
    Router,
    Prefill,
    Decode,
    Planner,
}

impl Role {
    pub const ALL: [Self; 6] =
        [Self::Ingress, Self::Tokenizer, Self::Router, Self::Prefill, Self::Decode, Self::Planner];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Tokenizer => "tokenizer",
            Self::Router => "router",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Planner => "planner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        Self::ALL.into_iter().find(|role| role.as_str() == name).ok_or_else(|| BadName(name.to_owned()))
    }
}

/// The bus id of a request: a UUIDv7 minted by ingress. A client's `x-request-id` is only a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Uuid);

impl RequestId {
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for RequestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

/// One dispatch of a request to an engine; drawn afresh for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl RunId {
    pub fn draw() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Counts how often ingress has sent a request's journal; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
