//! A body's type, by its subject or, failing that, by its fields.

use messages::{
    InstanceId,
    codec::{self, DecodeError},
    control::{Attached, Control, Pong},
    frame::{TextBatch, TokenBatch},
    generate::ToTokenizer,
    id::Role,
    kv::{KvEvents, KvSnapshot},
    lease::Lease,
    load::Load,
    prefill::{PrefillAnswer, PrefillTask, SlotAnswer},
    subject::{self, Kind},
    submit::{Custody, Submit},
    text::Answer,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::role_of;

/// A message body as JSON.
#[derive(Debug)]
pub struct Decoded {
    pub kind: &'static str,
    /// Who sent it, where the body says.
    pub from: Option<InstanceId>,
    pub body: Value,
}

impl Decoded {
    fn new(kind: &'static str, from: Option<InstanceId>, body: &impl Serialize) -> Self {
        let body =
            serde_json::to_value(body).unwrap_or_else(|error| json!({"unprintable": error.to_string()}));
        Self { kind, from, body }
    }

    fn malformed(error: &DecodeError, body: &[u8]) -> Self {
        let body = json!({"error": error.to_string(), "bytes": body.len()});
        Self { kind: "malformed", from: None, body }
    }
}

/// Decodes the body of a message to `subject`.
pub fn decode(subject: &str, body: &[u8]) -> Decoded {
    let decoded = match subject::parse(subject) {
        Some(Kind::Requests(Role::Tokenizer)) => codec::decode(body).map(to_tokenizer),
        Some(Kind::Requests(Role::Prefill)) => codec::decode(body).map(prefill),
        Some(Kind::Requests(_)) => codec::decode(body).map(submit),
        Some(Kind::Control(_)) => codec::decode(body).map(control),
        Some(Kind::Frames(inbox)) if role_of(&inbox) == Some(Role::Tokenizer) => {
            codec::decode(body).map(tokens)
        }
        Some(Kind::Frames(_)) => codec::decode(body).map(text),
        Some(Kind::Load(_)) => codec::decode(body).map(load),
        Some(Kind::Kv(_)) => codec::decode(body).map(kv_events),
        None if subject.starts_with("$KV.") => codec::decode(body).map(lease),
        None => return guess(body),
    };
    decoded.unwrap_or_else(|error| Decoded::malformed(&error, body))
}

/// Decodes an answer; `status` is what the server answered in nobody's name.
pub fn reply(body: &[u8], status: Option<u16>) -> Decoded {
    if let Some(status) = status {
        let why = if status == 503 { "nobody serves it" } else { "status of the server" };
        return Decoded { kind: "reply", from: None, body: json!({"status": status, "meaning": why}) };
    }
    let mut decoded = try_each(
        body,
        &[
            is(custody),
            is(answer),
            is(prefill_answer),
            is(slot_answer),
            is(kv_snapshot),
            is(pong),
            is(attached),
        ],
    );
    if decoded.kind != "malformed" {
        decoded.kind = "reply";
    }
    decoded
}

/// Decodes a body of any type. Types that require the most fields come first.
pub fn guess(body: &[u8]) -> Decoded {
    try_each(
        body,
        &[
            is(submit),
            is(lease),
            is(load),
            is(prefill),
            is(kv_events),
            is(kv_snapshot),
            is(text),
            is(tokens),
            is(pong),
            is(to_tokenizer),
            is(control),
            is(custody),
            is(answer),
            is(attached),
        ],
    )
}

type Attempt = Box<dyn Fn(&[u8]) -> Result<Decoded, DecodeError>>;

fn is<T: DeserializeOwned + 'static>(show: fn(T) -> Decoded) -> Attempt {
    Box::new(move |body| codec::decode(body).map(show))
}

fn try_each(body: &[u8], attempts: &[Attempt]) -> Decoded {
    attempts.iter().find_map(|attempt| attempt(body).ok()).unwrap_or_else(|| Decoded {
        kind: "malformed",
        from: None,
        body: json!({"error": "no message of this version", "bytes": body.len()}),
    })
}

fn to_tokenizer(message: ToTokenizer) -> Decoded {
    match message {
        ToTokenizer::Generate(body) => Decoded::new("generate", Some(body.ingress.clone()), &body),
        ToTokenizer::Tokenize(body) => Decoded::new("tokenize", None, &body),
        ToTokenizer::Detokenize(body) => Decoded::new("detokenize", None, &body),
    }
}

fn submit(body: Submit) -> Decoded {
    Decoded::new("submit", Some(body.tokenizer.clone()), &body)
}

fn control(body: Control) -> Decoded {
    match &body {
        Control::Cancel(cancel) => Decoded::new("cancel", None, cancel),
        Control::Attach(attach) => Decoded::new("attach", Some(attach.inbox.clone()), attach),
        Control::Ping { request, run } => {
            Decoded::new("ping", None, &json!({"request": request, "run": run}))
        }
        Control::KvSnapshot {} => Decoded::new("kv_snapshot", None, &json!({})),
        Control::Prefill(news) => Decoded::new("prefill_news", None, news),
        Control::Drain { now } => Decoded::new("drain", None, &json!({"now": now})),
    }
}

fn tokens(body: TokenBatch) -> Decoded {
    Decoded::new("frames", Some(body.from.clone()), &body)
}

fn text(body: TextBatch) -> Decoded {
    Decoded::new("frames", Some(body.from.clone()), &body)
}

fn load(body: Load) -> Decoded {
    Decoded::new("load", Some(body.instance.clone()), &body)
}

fn kv_events(body: KvEvents) -> Decoded {
    Decoded::new("kv_events", Some(body.instance.clone()), &body)
}

fn kv_snapshot(body: KvSnapshot) -> Decoded {
    Decoded::new("kv_snapshot", Some(body.instance.clone()), &body)
}

fn prefill(body: PrefillTask) -> Decoded {
    Decoded::new("prefill", Some(body.decode.clone()), &body)
}

fn prefill_answer(body: PrefillAnswer) -> Decoded {
    Decoded::new("prefill_answer", None, &body)
}

fn slot_answer(body: SlotAnswer) -> Decoded {
    Decoded::new("slot_answer", None, &body)
}

fn lease(body: Lease) -> Decoded {
    Decoded::new("lease", Some(body.instance.clone()), &body)
}

fn custody(body: Custody) -> Decoded {
    Decoded::new("custody", None, &body)
}

fn answer(body: Answer) -> Decoded {
    Decoded::new("answer", None, &body)
}

fn pong(body: Pong) -> Decoded {
    Decoded::new("pong", Some(body.instance.clone()), &body)
}

fn attached(body: Attached) -> Decoded {
    Decoded::new("attached", None, &body)
}
