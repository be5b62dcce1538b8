//! JSON written by hand where a stream needs it.

use std::fmt::Write;

use bytes::{BufMut, BytesMut};
use messages::frame::Usage;
use serde_json::{Value, json};

/// Stands for an infinite log probability, which JSON cannot say.
const LEAST_LOGPROB: f32 = -9999.0;

/// Appends a quoted and escaped string.
pub fn string(out: &mut BytesMut, text: &str) {
    // Writing into memory cannot fail.
    let _ = serde_json::to_writer(out.writer(), text);
}

pub fn number(out: &mut BytesMut, number: u64) {
    match u8::try_from(number) {
        // Nearly always the index of a choice.
        Ok(digit @ 0..=9) => out.put_u8(b'0' + digit),
        _ => drop(write!(out, "{number}")),
    }
}

pub fn value(out: &mut BytesMut, value: &Value) {
    let _ = serde_json::to_writer(out.writer(), value);
}

pub fn raw(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// A log probability that JSON can say.
pub fn logprob(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST_LOGPROB }
}

/// A number as it was computed: without the digits that widening would add.
pub fn float(logprob: f32) -> Value {
    let text = self::logprob(logprob).to_string();
    text.parse::<f64>().map_or(Value::Null, |wide| json!(wide))
}

/// OpenAI's usage object.
pub fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// The parts of a chunk that do not change.
#[derive(Debug)]
pub struct Frame {
    head: String,
    tail: &'static str,
    timing: bool,
}

impl Frame {
    pub fn new(object: &str, prefix: &str, heading: &super::Heading, include_usage: bool) -> Self {
        let head = json!({
            "id": format!("{prefix}-{}", heading.id),
            "object": object,
            "created": heading.created,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
        })
        .to_string();
        // The object stays open for the choices.
        let head = format!("data: {},\"choices\":[", &head[..head.len() - 1]);
        Self { head, tail: if include_usage { "],\"usage\":null" } else { "]" }, timing: heading.timing }
    }

    pub fn open(&self, out: &mut BytesMut) {
        raw(out, &self.head);
    }

    pub fn close(&self, out: &mut BytesMut, sampled_us: u64) {
        raw(out, self.tail);
        if self.timing && sampled_us > 0 {
            raw(out, ",\"stator\":{\"sampled_us\":");
            number(out, sampled_us);
            raw(out, "}");
        }
        raw(out, "}\n\n");
    }

    /// The last chunk: no choice, but the usage.
    pub fn usage(&self, out: &mut BytesMut, usage: &Usage) {
        raw(out, &self.head);
        raw(out, "],\"usage\":");
        value(out, &self::usage(usage));
        raw(out, "}\n\n");
    }
}
