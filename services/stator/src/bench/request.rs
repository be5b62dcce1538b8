//! One measured request.

use std::{
    borrow::Cow,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::prompt::Ask;
use crate::http::{Connection, Refused, sse::Events};

/// Asks the server to say in each chunk when its tokens were sampled.
const TIMING_HEADER: (&str, &str) = ("x-stator-timing", "1");
const MICROS: f64 = 1e6;

/// What is the same in all requests of a run.
#[derive(Debug, Clone)]
pub struct Shape {
    pub model: String,
    pub temperature: f32,
    pub ignore_eos: bool,
}

/// What one request showed; times in seconds.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Sample {
    pub ttft: Option<f64>,
    /// Between chunks with text.
    pub gaps: Vec<f64>,
    /// From a token's sampling to its arrival here.
    pub transits: Vec<f64>,
    pub end_to_end: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    Connect,
    Status(u16),
    /// An error event within the stream.
    InStream(String),
    Broken,
    Malformed,
    /// Not sent: too many in flight.
    Shed,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => f.write_str("no connection"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::InStream(code) => write!(f, "in stream: {code}"),
            Self::Broken => f.write_str("connection broke"),
            Self::Malformed => f.write_str("malformed answer"),
            Self::Shed => f.write_str("not sent, too many in flight"),
        }
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    stator: Option<Timing>,
    error: Option<StreamError>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Delta<'a>,
}

#[derive(Deserialize, Default)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Timing {
    sampled_us: Option<u64>,
}

#[derive(Deserialize)]
struct StreamError {
    code: Option<serde_json::Value>,
    r#type: Option<String>,
}

/// Sends `ask` and reads its answer to the end. `began` is when it should have been sent.
pub async fn send(
    connection: &mut Connection,
    shape: &Shape,
    ask: &Ask,
    began: Instant,
) -> Result<Sample, Failure> {
    let mut body = json!({
        "model": shape.model,
        "messages": [{"role": "user", "content": ask.text}],
        "max_completion_tokens": ask.max_tokens,
        "temperature": shape.temperature,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if shape.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    let body = Bytes::from(body.to_string());
    let response = connection
        .send(Method::POST, "/v1/chat/completions", &[TIMING_HEADER], body)
        .await
        .map_err(|_| Failure::Connect)?;
    if !response.status().is_success() {
        return Err(Failure::Status(Refused::read(response).await.status));
    }
    let mut reading = Reading { sample: Sample::default(), began, last: None };
    let (mut body, mut events) = (response.into_body(), Events::default());
    while let Some(frame) = body.frame().await {
        let (now, unix) = (Instant::now(), SystemTime::now());
        let frame = frame.map_err(|_| Failure::Broken)?;
        let Some(piece) = frame.data_ref() else { continue };
        events.feed(piece).map_err(|_| Failure::Malformed)?;
        while let Some(data) = events.next() {
            if data == b"[DONE]" {
                reading.sample.end_to_end = (now - began).as_secs_f64();
                // The rest of the body is its end: reading it frees the connection for the next request.
                while body.frame().await.is_some() {}
                return Ok(reading.sample);
            }
            reading.take(&data, now, unix)?;
        }
    }
    Err(Failure::Broken)
}

struct Reading {
    sample: Sample,
    began: Instant,
    last: Option<Instant>,
}

impl Reading {
    fn take(&mut self, data: &[u8], now: Instant, unix: SystemTime) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(|_| Failure::Malformed)?;
        if let Some(error) = chunk.error {
            let code = error.code.as_ref().and_then(|code| code.as_str()).map(str::to_owned);
            return Err(Failure::InStream(code.or(error.r#type).unwrap_or_else(|| "error".to_owned())));
        }
        if let Some(usage) = chunk.usage {
            self.sample.prompt_tokens = usage.prompt_tokens;
            self.sample.output_tokens = usage.completion_tokens;
            self.sample.cached_tokens =
                usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        }
        let text = chunk
            .choices
            .iter()
            .any(|choice| choice.delta.content.as_ref().is_some_and(|text| !text.is_empty()));
        if !text {
            return Ok(());
        }
        match self.last.replace(now) {
            None => self.sample.ttft = Some((now - self.began).as_secs_f64()),
            Some(last) => self.sample.gaps.push((now - last).as_secs_f64()),
        }
        let sampled = chunk.stator.and_then(|timing| timing.sampled_us).filter(|micros| *micros > 0);
        if let (Some(sampled), Ok(arrived)) = (sampled, unix.duration_since(UNIX_EPOCH)) {
            self.sample.transits.push((arrived.as_secs_f64() * MICROS - sampled as f64) / MICROS);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
