//! Makes a decoded body fit to be read: bytes become text again, and content becomes its length.

use serde_json::{Value, json};

/// Fields that carry what a client wrote or a model answered.
const CONTENT: [&str; 17] = [
    "messages",
    "tools",
    "template_kwargs",
    "text",
    "prompt",
    "ids",
    "output",
    "tokens",
    "pieces",
    "token",
    "id",
    "top",
    "logprobs",
    "logit_bias",
    "stop",
    "matched",
    "cache_salt",
];
/// Fields whose bytes are JSON, and one whose bytes are (part of) a text.
const JSON_BYTES: [&str; 3] = ["messages", "tools", "template_kwargs"];
const TEXT_BYTES: &str = "token";

/// Tidies `body` in place. Without `show_content` only lengths of content are left.
pub fn tidy(body: &mut Value, show_content: bool) {
    match body {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if !show_content && is_content(name, value) {
                    *value = length(value);
                } else if let Some(readable) = readable(name, value) {
                    *value = readable;
                } else {
                    tidy(value, show_content);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| tidy(item, show_content)),
        _ => {}
    }
}

/// Objects are looked into; counts, flags and `null` say nothing about content, but a token id does.
fn is_content(name: &str, value: &Value) -> bool {
    let revealing = match value {
        Value::String(_) | Value::Array(_) => true,
        Value::Number(_) => name == "id",
        _ => false,
    };
    revealing && CONTENT.contains(&name)
}

fn length(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(format!("<{} characters>", text.chars().count())),
        Value::Array(items) => json!(format!("<{} items>", items.len())),
        _ => json!("<hidden>"),
    }
}

fn readable(name: &str, value: &Value) -> Option<Value> {
    if name != TEXT_BYTES && !JSON_BYTES.contains(&name) {
        return None;
    }
    let bytes: Vec<u8> = value
        .as_array()?
        .iter()
        .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
        .collect::<Option<_>>()?;
    if name == TEXT_BYTES {
        return Some(String::from_utf8_lossy(&bytes).into());
    }
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate() -> Value {
        let messages = br#"[{"role":"user","content":"secret"}]"#;
        json!({
            "input": {"chat": {"messages": messages.to_vec(), "add_generation_prompt": true}},
            "n": 1,
            "text": {"stop": ["secret"], "skip_special_tokens": true},
            "journal": {"prompt": [77, 78], "choices": [{"index": 0, "output": [79], "delivered": 3}]},
        })
    }

    #[test]
    fn content_is_hidden_and_the_rest_is_kept() {
        let mut body = generate();
        tidy(&mut body, false);
        let shown = body.to_string();
        for hidden in ["secret", "77", "79"] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
        assert_eq!(body["journal"]["prompt"], "<2 items>");
        assert_eq!(body["text"]["skip_special_tokens"], true);
        assert_eq!(body["journal"]["choices"][0]["delivered"], 3);
    }

    #[test]
    fn shown_content_is_readable() {
        let mut body = generate();
        tidy(&mut body, true);
        assert_eq!(body["input"]["chat"]["messages"][0]["content"], "secret");
        assert_eq!(body["journal"]["prompt"], json!([77, 78]));
    }

    #[test]
    fn log_probabilities_reveal_no_tokens() {
        let entry = json!({"delta": {"logprobs": [{"id": 5, "token": [104, 105], "logprob": -0.5}]}});
        let (mut hidden, mut shown) = (entry.clone(), entry);
        tidy(&mut hidden, false);
        tidy(&mut shown, true);
        assert_eq!(hidden["delta"]["logprobs"], "<1 items>");
        assert_eq!(shown["delta"]["logprobs"][0]["token"], "hi");
    }

    #[test]
    fn an_end_by_a_stop_token_names_no_token() {
        let mut body = json!({"end": {"stop_string": {"matched": "secret", "tokens": 4}}});
        tidy(&mut body, false);
        assert_eq!(body, json!({"end": {"stop_string": {"matched": "<6 characters>", "tokens": 4}}}));
    }
}
