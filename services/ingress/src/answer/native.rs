//! SGLang's native answers: one object a choice; streamed, each object holds all there is so far.

use bytes::BytesMut;
use messages::frame::{End, TextLogprobs, Usage};
use serde_json::{Value, json};

use super::{Gathered, Heading, Prelude, json as write};
use crate::{
    api::ask::NativeForm,
    road::{Event, outlet::Delta},
};

/// A streamed native answer.
#[derive(Debug)]
pub struct Chunks {
    form: NativeForm,
    heading: Heading,
    prelude: Prelude,
    /// What there is of each choice.
    so_far: Vec<Delta>,
    /// Prompt and cached tokens of each prompt.
    prompts: Vec<Usage>,
}

impl Chunks {
    pub fn new(form: NativeForm, heading: Heading, prelude: Prelude) -> Self {
        let so_far = (0..).take(heading.choices()).map(|index| Delta { index, ..Delta::default() });
        let so_far = so_far.collect();
        let prompts = vec![Usage::default(); heading.prompts];
        Self { form, heading, prelude, so_far, prompts }
    }

    pub fn event(&mut self, event: &Event, out: &mut BytesMut) {
        match event {
            Event::Begun { prompt, prompt_tokens, cached_tokens } => {
                if let Some(usage) = self.prompts.get_mut(*prompt) {
                    (usage.prompt_tokens, usage.cached_tokens) = (*prompt_tokens, *cached_tokens);
                }
            }
            Event::Delta(delta) => self.delta(delta, out),
            Event::Scored { .. } | Event::Closed { .. } => {}
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut BytesMut) {
        let Some(so_far) = self.so_far.get_mut(delta.index as usize) else { return };
        so_far.text.push_str(&delta.text);
        so_far.ids.extend_from_slice(&delta.ids);
        so_far.tokens += delta.tokens;
        so_far.logprobs.extend(delta.logprobs.iter().cloned());
        so_far.end.clone_from(&delta.end);
        let usage = self.prompts[self.heading.prompt_of(delta.index)];
        let mut object = object(&self.form, &self.heading, &self.prelude, so_far, usage);
        if self.form.batch || self.heading.n > 1 {
            object["index"] = json!(delta.index);
        }
        if self.heading.timing && delta.sampled_us > 0 {
            object["stator"] = json!({"sampled_us": delta.sampled_us});
        }
        write::raw(out, "data: ");
        write::value(out, &object);
        write::raw(out, "\n\n");
    }
}

pub fn whole(form: &NativeForm, heading: &Heading, prelude: &Prelude, gathered: &Gathered) -> Value {
    let objects = gathered.deltas.iter().map(|delta| {
        let usage = gathered.usage_of(heading.prompt_of(delta.index));
        object(form, heading, prelude, delta, usage)
    });
    let mut objects: Vec<Value> = objects.collect();
    if form.batch || heading.n > 1 { Value::Array(objects) } else { objects.pop().unwrap_or_default() }
}

fn object(form: &NativeForm, heading: &Heading, prelude: &Prelude, delta: &Delta, usage: Usage) -> Value {
    let prompt = heading.prompt_of(delta.index);
    let completion_tokens = match &delta.end {
        _ if form.no_output => 0,
        Some(End::StopString { tokens, .. }) => *tokens as usize,
        _ => delta.tokens,
    };
    let id = match form.ids.get(prompt).cloned().flatten() {
        Some(id) => id,
        None if form.batch || heading.n > 1 => format!("{}-{}", heading.id, delta.index),
        None => heading.id.clone(),
    };
    let mut meta = json!({
        "id": id,
        "finish_reason": finish_reason(delta.end.as_ref(), completion_tokens),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "weight_version": heading.revision,
    });
    if delta.end.is_some() {
        meta["e2e_latency"] = json!(heading.started.elapsed().as_secs_f64());
    }
    if form.logprobs {
        let scored = prelude.scored(prompt);
        let shown = if form.no_output { &[][..] } else { delta.logprobs.as_slice() };
        meta["input_token_logprobs"] = scored.map_or_else(|| json!([]), |scored| scored.triples());
        meta["output_token_logprobs"] = shown.iter().map(|scored| triple(form, scored)).collect();
        if form.top_logprobs {
            meta["input_top_logprobs"] = scored.map_or_else(|| json!([]), |scored| scored.top_triples());
            meta["output_top_logprobs"] = shown.iter().map(|scored| top_triples(form, scored)).collect();
        }
    }
    let (text, ids) =
        if form.no_output { ("", &[][..]) } else { (delta.text.as_str(), delta.ids.as_slice()) };
    json!({"text": text, "output_ids": ids, "meta_info": meta})
}

fn finish_reason(end: Option<&End>, tokens: usize) -> Value {
    match end {
        None => Value::Null,
        Some(End::StopToken(id)) => json!({"type": "stop", "matched": id}),
        Some(End::StopString { matched, .. }) => json!({"type": "stop", "matched": matched}),
        Some(End::Length) => json!({"type": "length", "length": tokens}),
        Some(End::Cancelled) => json!({"type": "abort", "message": "cancelled", "status_code": 499}),
    }
}

fn triple(form: &NativeForm, scored: &TextLogprobs) -> Value {
    json!([scored.logprob.map(write::float), scored.id, text(form, &scored.token)])
}

fn top_triples(form: &NativeForm, scored: &TextLogprobs) -> Value {
    let triples =
        scored.top.iter().map(|top| json!([write::float(top.logprob), top.id, text(form, &top.token)]));
    triples.collect()
}

fn text(form: &NativeForm, token: &[u8]) -> Option<String> {
    form.text_in_logprobs.then(|| String::from_utf8_lossy(token).into_owned())
}
