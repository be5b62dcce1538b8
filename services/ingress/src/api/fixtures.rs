//! Shared by tests.

use messages::lease::{GenerationDefaults, ModelCard};
use serde_json::{Value, json};

use super::Fields;

pub fn card() -> ModelCard {
    ModelCard {
        name: "tiny/llama".to_owned(),
        revision: "0123456789abcdef".to_owned(),
        path: "models/tiny".to_owned(),
        context_length: 2048,
        vocab_size: 1000,
        architecture: "llama".to_owned(),
        has_chat_template: true,
        eos_ids: vec![2],
        defaults: GenerationDefaults { temperature: Some(0.2), top_k: Some(40), ..Default::default() },
        created: 1_700_000_000,
    }
}

/// The fields of `base` with those of `more` over them.
pub fn fields(base: Value, more: Value) -> Fields {
    let mut merged = base;
    for (name, value) in more.as_object().cloned().unwrap_or_default() {
        merged[name] = value;
    }
    Fields::parse(merged.to_string().as_bytes()).expect("an object")
}

pub fn chat(more: Value) -> Fields {
    fields(json!({"model": "tiny/llama", "messages": [{"role": "user", "content": "hi"}]}), more)
}

pub fn completion(more: Value) -> Fields {
    fields(json!({"model": "tiny/llama", "prompt": "hi"}), more)
}
