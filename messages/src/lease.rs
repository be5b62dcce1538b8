//! Who is alive: one lease per instance in a NATS key-value bucket, and the card of the model it serves.

use serde::{Deserialize, Serialize};

use crate::{
    id::{InstanceId, Pool, Role},
    pages::Pages,
};

/// An instance's word about itself, renewed each second and gone three seconds after the last renewal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub role: Role,
    pub pool: Pool,
    pub instance: InstanceId,
    pub state: State,
    /// Version of the program.
    pub version: String,
    pub host: String,
    pub pid: u32,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Where this process answers `/metrics` and `/admin`, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    /// The model, for roles that serve one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<ModelCard>,
    /// Engines: weights, KV dtype and kernels; equal classes compute equal logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics_class: Option<String>,
    /// Engines: tokens that the KV pool holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<u64>,
    /// Engines: tokens per KV block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    /// Engines: what the bytes of a KV page mean, in the words of `kv::PageLayout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_layout: Option<String>,
    /// Engines: layouts of pages that are taken whoever computed them; pages of the engine's own layout and numerics class
    /// are taken anyway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_accepts: Vec<String>,
    /// Decode engines: no pages are taken, whoever computed them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub computes_all: bool,
    /// Engines: choices that run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// Engines: requests that may wait there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queued: Option<u32>,
}

impl Lease {
    /// Whether KV pages that `other` has computed are of use to this engine. If either side's layout is unknown, engines
    /// find out when they ask for pages.
    pub fn takes_pages_of(&self, other: &Self) -> bool {
        if self.computes_all {
            return false;
        }
        let Some((own, theirs)) = self.pages().zip(other.pages()) else { return true };
        theirs.are_of_use(&own, &self.kv_accepts)
    }

    /// What its pages are.
    pub fn pages(&self) -> Option<Pages<'_>> {
        let layout = self.kv_layout.as_deref()?;
        Some(Pages { layout, numerics_class: self.numerics_class.as_deref() })
    }

    /// A starting instance of which nothing else is known.
    pub fn new(role: Role, pool: Pool, instance: InstanceId) -> Self {
        Self {
            role,
            pool,
            instance,
            state: State::Starting,
            version: String::new(),
            host: String::new(),
            pid: 0,
            started_ms: 0,
            admin: None,
            card: None,
            numerics_class: None,
            kv_tokens: None,
            page_size: None,
            kv_layout: None,
            kv_accepts: Vec::new(),
            computes_all: false,
            max_running: None,
            max_queued: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Alive, not yet able to take work (weights load).
    Starting,
    Ready,
    /// Finishes what it has, takes nothing new.
    Draining,
}

/// What a client, an ingress or a router must know of a served model. Every instance that serves a model carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The name clients ask for.
    pub name: String,
    /// Hash over weights, tokenizer and template: repair, prefix reuse and hand-over never cross revisions.
    pub revision: String,
    /// Where its files lie, as given at start.
    pub path: String,
    /// Longest sequence, prompt and output, in tokens.
    pub context_length: u32,
    pub vocab_size: u32,
    /// Architecture family such as `llama`.
    pub architecture: String,
    pub has_chat_template: bool,
    /// Tokens that end an output.
    pub eos_ids: Vec<u32>,
    /// From the model's generation_config; a request overrides each.
    pub defaults: GenerationDefaults,
    /// Unix seconds, for `/v1/models`.
    pub created: u64,
}

impl ModelCard {
    /// The pool of instances that serve this revision.
    pub fn pool(&self) -> Pool {
        Pool::of_model(&self.name, &self.revision)
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(layout: Option<&str>, class: &str, accepts: &[&str]) -> Lease {
        let new = Lease::new(Role::Decode, Pool::of_model("m", "r"), "decode-1".parse().unwrap());
        Lease {
            kv_layout: layout.map(str::to_owned),
            numerics_class: Some(class.to_owned()),
            kv_accepts: accepts.iter().map(|layout| (*layout).to_owned()).collect(),
            ..new
        }
    }

    #[test]
    fn pages_are_taken_as_the_taker_says_and_of_who_says_nothing() {
        let plain = lease(Some("f16"), "cpu", &[]);
        let open = lease(Some("f16"), "cpu", &["f16", "bf16"]);
        let takes = |other: &Lease| (plain.takes_pages_of(other), open.takes_pages_of(other));
        assert_eq!(takes(&lease(Some("f16"), "cpu", &[])), (true, true));
        assert_eq!(takes(&lease(Some("f16"), "gpu", &[])), (false, true), "computed by another class");
        assert_eq!(takes(&lease(Some("bf16"), "gpu", &[])), (false, true), "and laid out otherwise");
        assert_eq!(takes(&lease(Some("fp8"), "gpu", &["f16"])), (false, false), "who accepts is the taker");
        assert_eq!(takes(&lease(None, "gpu", &[])), (true, true), "who says nothing is asked");
        let alone = Lease { computes_all: true, ..open };
        assert!(!alone.takes_pages_of(&plain));
    }
}
