//! Text completions.

use bytes::BytesMut;
use messages::frame::{TextLogprobs, Usage};
use serde_json::{Map, Value, json};

use super::{Gathered, Heading, Prelude, Scored, finish_reason, json as write};
use crate::{
    api::ask::CompletionForm,
    road::{Event, outlet::Delta},
};

/// A streamed text completion.
#[derive(Debug)]
pub struct Chunks {
    form: CompletionForm,
    frame: write::Frame,
    heading: Heading,
    prelude: Prelude,
    /// Characters written of each choice, once it has begun.
    written: Vec<Option<usize>>,
    usage: Usage,
}

impl Chunks {
    pub fn new(form: CompletionForm, heading: Heading, prelude: Prelude) -> Self {
        let frame = write::Frame::new("text_completion", "cmpl", &heading, form.include_usage);
        let written = vec![None; heading.choices()];
        Self { form, frame, heading, prelude, written, usage: Usage::default() }
    }

    pub fn event(&mut self, event: &Event, out: &mut BytesMut) {
        match event {
            Event::Delta(delta) => self.delta(delta, out),
            Event::Closed { usage, .. } => self.usage = super::total([&self.usage, usage].into_iter()),
            Event::Begun { .. } | Event::Scored { .. } => {}
        }
    }

    pub fn finish(&mut self, out: &mut BytesMut) {
        if self.form.include_usage {
            shorten(&self.form, &mut self.usage);
            self.frame.usage(out, &self.usage);
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut BytesMut) {
        let index = delta.index as usize;
        let Some(written) = self.written.get(index).copied() else { return };
        let mut offset = match written {
            Some(offset) => offset,
            None => self.echo(delta.index, out),
        };
        let shown = !self.form.no_output;
        let has_text = shown && (!delta.text.is_empty() || !delta.logprobs.is_empty());
        let reason = finish_reason(delta.end.as_ref());
        if has_text || reason.is_some() {
            let text = if shown { delta.text.as_str() } else { "" };
            let logprobs = match self.form.logprobs.filter(|_| has_text) {
                Some(_) => LogprobBlock::of_output(&delta.logprobs, offset).into_value(),
                None => Value::Null,
            };
            let reason = reason.map(|reason| if shown { reason } else { "length" });
            self.chunk(delta.index, text, &logprobs, reason, delta.sampled_us, out);
            offset += text.chars().count();
        }
        self.written[index] = Some(offset);
    }

    /// Begins a choice with its prompt; returns the characters written.
    fn echo(&self, index: u32, out: &mut BytesMut) -> usize {
        if !self.form.echo {
            return 0;
        }
        let prompt = self.heading.prompt_of(index);
        let text = self.prelude.echo(prompt);
        let logprobs = match self.prelude.scored(prompt) {
            Some(scored) => LogprobBlock::of_prompt(scored).into_value(),
            None => Value::Null,
        };
        self.chunk(index, text, &logprobs, None, 0, out);
        text.chars().count()
    }

    fn chunk(
        &self,
        index: u32,
        text: &str,
        logprobs: &Value,
        reason: Option<&str>,
        sampled_us: u64,
        out: &mut BytesMut,
    ) {
        self.frame.open(out);
        write::raw(out, "{\"index\":");
        write::number(out, index.into());
        write::raw(out, ",\"text\":");
        write::string(out, text);
        write::raw(out, ",\"logprobs\":");
        write::value(out, logprobs);
        write::raw(out, ",\"finish_reason\":");
        match reason {
            Some(reason) => write::string(out, reason),
            None => write::raw(out, "null"),
        }
        write::raw(out, "}");
        self.frame.close(out, sampled_us);
    }
}

pub fn whole(form: &CompletionForm, heading: &Heading, prelude: &Prelude, gathered: &Gathered) -> Value {
    let choices = gathered.deltas.iter().map(|delta| {
        let prompt = heading.prompt_of(delta.index);
        let echo = if form.echo { prelude.echo(prompt) } else { "" };
        let output = if form.no_output { "" } else { delta.text.as_str() };
        let reason = finish_reason(delta.end.as_ref());
        json!({
            "index": delta.index,
            "text": format!("{echo}{output}"),
            "logprobs": logprobs(form, prelude.scored(prompt), echo, delta),
            "finish_reason": if form.no_output { Some("length") } else { reason },
        })
    });
    let mut usage = gathered.usage();
    shorten(form, &mut usage);
    json!({
        "id": format!("cmpl-{}", heading.id),
        "object": "text_completion",
        "created": heading.created,
        "model": heading.model,
        "system_fingerprint": heading.fingerprint,
        "choices": choices.collect::<Vec<_>>(),
        "usage": write::usage(&usage),
    })
}

/// Without output asked for, none is counted.
fn shorten(form: &CompletionForm, usage: &mut Usage) {
    if form.no_output {
        usage.output_tokens = 0;
    }
}

fn logprobs(form: &CompletionForm, scored: Option<&Scored>, echo: &str, delta: &Delta) -> Value {
    if form.logprobs.is_none() {
        return Value::Null;
    }
    let mut block = scored.map(LogprobBlock::of_prompt).unwrap_or_default();
    if !form.no_output {
        block.extend(LogprobBlock::of_output(&delta.logprobs, echo.chars().count()));
    }
    block.into_value()
}

/// The four parallel lists of a text completion's log probabilities.
#[derive(Debug, Default)]
struct LogprobBlock {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl LogprobBlock {
    fn of_output(scored: &[TextLogprobs], mut offset: usize) -> Self {
        let mut block = Self::default();
        for scored in scored {
            let own = scored.logprob.map_or(Value::Null, write::float);
            let mut top: Map<String, Value> =
                scored.top.iter().map(|top| (name(&top.token), write::float(top.logprob))).collect();
            top.entry(name(&scored.token)).or_insert_with(|| own.clone());
            block.tokens.push(name(&scored.token));
            block.token_logprobs.push(own);
            block.top_logprobs.push(Value::Object(top));
            block.text_offset.push(offset);
            offset += String::from_utf8_lossy(&scored.token).chars().count();
        }
        block
    }

    fn of_prompt(scored: &Scored) -> Self {
        let mut block = Self::default();
        let mut offset = 0;
        for token in scored.tokens() {
            let piece = scored.piece(token.id);
            block.tokens.push(piece.to_owned());
            block.token_logprobs.push(token.logprob.map_or(Value::Null, write::float));
            block.top_logprobs.push(scored.top(token));
            block.text_offset.push(offset);
            offset += piece.chars().count();
        }
        block
    }

    fn extend(&mut self, later: Self) {
        self.tokens.extend(later.tokens);
        self.token_logprobs.extend(later.token_logprobs);
        self.top_logprobs.extend(later.top_logprobs);
        self.text_offset.extend(later.text_offset);
    }

    fn into_value(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token as text; one that is no whole character is shown as its bytes.
fn name(token: &[u8]) -> String {
    match std::str::from_utf8(token) {
        Ok(text) => text.to_owned(),
        Err(_) => token.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}
