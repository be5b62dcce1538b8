//! Writing answers: OpenAI's and SGLang's JSON, streamed as server-sent events or as one object.
//!
//! Streams are written piece by piece into a buffer: what stays the same in every chunk is formatted once.

mod chat;
mod completion;
mod json;
mod native;
mod scored;
mod stream;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use messages::{
    frame::{End, Usage},
    lease::ModelCard,
};
use serde_json::Value;

use crate::{
    api::{Form, ask},
    road::Event,
};

pub use scored::Scored;
pub use stream::EventStream;

/// What every part of an answer says.
#[derive(Debug, Clone)]
pub struct Heading {
    /// Without the prefix that tells the kind of answer.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
    pub revision: String,
    /// Choices of each prompt.
    pub n: u32,
    pub prompts: usize,
    /// Chunks say when their token was sampled.
    pub timing: bool,
    pub started: Instant,
}

impl Heading {
    pub fn new(id: String, card: &ModelCard, n: u32, prompts: usize, timing: bool) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id,
            created: since_epoch.as_secs(),
            model: card.name.clone(),
            fingerprint: ask::fingerprint(card),
            revision: card.revision.clone(),
            n,
            prompts,
            timing,
            started: Instant::now(),
        }
    }

    fn choices(&self) -> usize {
        self.n as usize * self.prompts
    }

    /// The prompt that a choice belongs to.
    fn prompt_of(&self, choice: u32) -> usize {
        (choice / self.n.max(1)) as usize
    }
}

/// What is known of the prompts before the first output.
#[derive(Debug, Default)]
pub struct Prelude {
    /// The text of each prompt, if it is echoed.
    pub echoes: Vec<String>,
    /// The log probabilities of each prompt, if asked for.
    pub scores: Vec<Option<Scored>>,
}

impl Prelude {
    fn echo(&self, prompt: usize) -> &str {
        self.echoes.get(prompt).map_or("", String::as_str)
    }

    fn scored(&self, prompt: usize) -> Option<&Scored> {
        self.scores.get(prompt).and_then(Option::as_ref)
    }
}

/// Writes a streamed answer.
#[derive(Debug)]
pub enum Script {
    Chat(chat::Chunks),
    Completion(completion::Chunks),
    Native(native::Chunks),
}

impl Script {
    pub fn new(form: &Form, heading: Heading, prelude: Prelude) -> Self {
        match form {
            Form::Chat(form) => Self::Chat(chat::Chunks::new(form.clone(), &heading)),
            Form::Completion(form) => {
                Self::Completion(completion::Chunks::new(form.clone(), heading, prelude))
            }
            Form::Native(form) => Self::Native(native::Chunks::new(form.clone(), heading, prelude)),
        }
    }

    /// Writes one event.
    pub fn event(&mut self, event: &Event, out: &mut BytesMut) {
        match self {
            Self::Chat(chunks) => chunks.event(event, out),
            Self::Completion(chunks) => chunks.event(event, out),
            Self::Native(chunks) => chunks.event(event, out),
        }
    }

    /// Writes what follows the last event.
    pub fn finish(&mut self, out: &mut BytesMut) {
        match self {
            Self::Chat(chunks) => chunks.finish(out),
            Self::Completion(chunks) => chunks.finish(out),
            Self::Native(_) => {}
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// A whole answer, from events in which each choice has one delta.
pub fn whole(form: &Form, heading: &Heading, prelude: &Prelude, events: Vec<Event>) -> Value {
    let mut gathered = Gathered::default();
    for event in events {
        gathered.take(event);
    }
    gathered.deltas.sort_by_key(|delta| delta.index);
    match form {
        Form::Chat(form) => chat::whole(form, heading, &gathered),
        Form::Completion(form) => completion::whole(form, heading, prelude, &gathered),
        Form::Native(form) => native::whole(form, heading, prelude, &gathered),
    }
}

/// All of a collected answer.
#[derive(Debug, Default)]
struct Gathered {
    deltas: Vec<crate::road::outlet::Delta>,
    /// Per prompt.
    usages: Vec<(usize, Usage)>,
}

impl Gathered {
    fn take(&mut self, event: Event) {
        match event {
            Event::Delta(delta) => self.deltas.push(delta),
            Event::Closed { prompt, usage } => self.usages.push((prompt, usage)),
            Event::Begun { .. } | Event::Scored { .. } => {}
        }
    }

    fn usage(&self) -> Usage {
        total(self.usages.iter().map(|(_, usage)| usage))
    }

    fn usage_of(&self, prompt: usize) -> Usage {
        total(self.usages.iter().filter(|(of, _)| *of == prompt).map(|(_, usage)| usage))
    }
}

fn total<'a>(usages: impl Iterator<Item = &'a Usage>) -> Usage {
    usages.fold(Usage::default(), |sum, usage| Usage {
        prompt_tokens: sum.prompt_tokens + usage.prompt_tokens,
        cached_tokens: sum.cached_tokens + usage.cached_tokens,
        output_tokens: sum.output_tokens + usage.output_tokens,
    })
}

/// OpenAI's word for the end of a choice.
fn finish_reason(end: Option<&End>) -> Option<&'static str> {
    match end? {
        End::StopToken(_) | End::StopString { .. } => Some("stop"),
        End::Length => Some("length"),
        End::Cancelled => Some("abort"),
    }
}

#[cfg(test)]
mod tests;
