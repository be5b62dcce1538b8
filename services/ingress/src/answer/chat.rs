//! Chat completions.

use bytes::BytesMut;
use messages::frame::{TextLogprobs, TopLogprob, Usage};
use serde_json::{Value, json};

use super::{Gathered, Heading, finish_reason, json as write};
use crate::{
    api::ask::ChatForm,
    road::{Event, outlet::Delta},
};

/// A streamed chat completion.
#[derive(Debug)]
pub struct Chunks {
    form: ChatForm,
    frame: write::Frame,
    begun: Vec<bool>,
    usage: Usage,
}

impl Chunks {
    pub fn new(form: ChatForm, heading: &Heading) -> Self {
        let frame = write::Frame::new("chat.completion.chunk", "chatcmpl", heading, form.include_usage);
        Self { form, frame, begun: vec![false; heading.choices()], usage: Usage::default() }
    }

    pub fn event(&mut self, event: &Event, out: &mut BytesMut) {
        match event {
            Event::Delta(delta) => self.delta(delta, out),
            Event::Closed { usage, .. } => self.usage = super::total([&self.usage, usage].into_iter()),
            Event::Begun { .. } | Event::Scored { .. } => {}
        }
    }

    pub fn finish(&self, out: &mut BytesMut) {
        if self.form.include_usage {
            self.frame.usage(out, &self.usage);
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut BytesMut) {
        if let Some(begun) = self.begun.get_mut(delta.index as usize).filter(|begun| !**begun) {
            *begun = true;
            self.open(delta.index, out);
            write::raw(out, "\"role\":\"assistant\",\"content\":\"\"}");
            self.close(out, None, 0);
        }
        if !delta.text.is_empty() || !delta.logprobs.is_empty() {
            self.open(delta.index, out);
            write::raw(out, "\"content\":");
            write::string(out, &delta.text);
            write::raw(out, "},\"logprobs\":");
            if self.form.logprobs {
                write::value(out, &logprobs(&delta.logprobs));
            } else {
                write::raw(out, "null");
            }
            write::raw(out, ",\"finish_reason\":null}");
            self.frame.close(out, delta.sampled_us);
        }
        if let Some(reason) = finish_reason(delta.end.as_ref()) {
            self.open(delta.index, out);
            write::raw(out, "}");
            self.close(out, Some(reason), delta.sampled_us);
        }
    }

    fn open(&self, index: u32, out: &mut BytesMut) {
        self.frame.open(out);
        write::raw(out, "{\"index\":");
        write::number(out, index.into());
        write::raw(out, ",\"delta\":{");
    }

    fn close(&self, out: &mut BytesMut, reason: Option<&str>, sampled_us: u64) {
        match reason {
            Some(reason) => {
                write::raw(out, ",\"logprobs\":null,\"finish_reason\":");
                write::string(out, reason);
                write::raw(out, "}");
            }
            None => write::raw(out, ",\"logprobs\":null,\"finish_reason\":null}"),
        }
        self.frame.close(out, sampled_us);
    }
}

pub fn whole(form: &ChatForm, heading: &Heading, gathered: &Gathered) -> Value {
    let choices = gathered.deltas.iter().map(|delta| {
        json!({
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": null},
            "logprobs": if form.logprobs { logprobs(&delta.logprobs) } else { Value::Null },
            "finish_reason": finish_reason(delta.end.as_ref()),
        })
    });
    json!({
        "id": format!("chatcmpl-{}", heading.id),
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "system_fingerprint": heading.fingerprint,
        "choices": choices.collect::<Vec<_>>(),
        "usage": write::usage(&gathered.usage()),
    })
}

fn logprobs(scored: &[TextLogprobs]) -> Value {
    let content = scored.iter().map(|scored| {
        let mut entry = token(&scored.token, scored.logprob.unwrap_or(0.0));
        entry["top_logprobs"] = scored.top.iter().map(top).collect();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn top(top: &TopLogprob) -> Value {
    token(&top.token, top.logprob)
}

fn token(bytes: &[u8], logprob: f32) -> Value {
    json!({"token": String::from_utf8_lossy(bytes), "logprob": write::float(logprob), "bytes": bytes})
}
