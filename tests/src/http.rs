use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest that any reply may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client of one server; every request has its own connection.
#[derive(Debug, Clone)]
pub struct Http {
    address: String,
}

/// A whole reply.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// One server-sent event and when it came.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: Instant,
    pub data: String,
}

impl Http {
    pub fn to(port: u16) -> Self {
        Self::at(&format!("127.0.0.1:{port}"))
    }

    pub fn at(address: &str) -> Self {
        Self { address: address.to_owned() }
    }

    /// # Errors
    /// If the connection fails or the reply does not end in time.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send("GET", path, &[], Bytes::new()).await
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send("POST", path, &[("content-type", "application/json")], serde_json::to_vec(body)?.into())
            .await
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Reply> {
        let exchange = async {
            let response = self.open(method, path, headers, body).await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = response.into_body().collect().await?.to_bytes();
            Ok(Reply { status, headers, body: String::from_utf8(body.to_vec())? })
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no whole reply in time")?
    }

    /// Posts and reads server-sent events to the end of the stream, calling `seen` after each.
    ///
    /// # Errors
    /// If the connection fails, the status is not 200, or the stream breaks.
    pub async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut seen: impl FnMut(usize),
    ) -> anyhow::Result<Vec<Event>> {
        let body: Bytes = serde_json::to_vec(body)?.into();
        let response = self.open("POST", path, &[("content-type", "application/json")], body).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status != 200 {
            let text = body.collect().await?.to_bytes();
            bail!("status {status}: {}", String::from_utf8_lossy(&text));
        }
        let (mut events, mut pending) = (Vec::new(), Vec::new());
        while let Some(frame) =
            tokio::time::timeout(PATIENCE, body.frame()).await.context("the stream stalled")?
        {
            let Ok(data) = frame?.into_data() else { continue };
            // Data may be cut anywhere, in the middle of a character too.
            pending.extend_from_slice(&data);
            while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                if let Some(data) = std::str::from_utf8(&event)?.trim_end().strip_prefix("data: ") {
                    events.push(Event { at: Instant::now(), data: data.to_owned() });
                    seen(events.len());
                }
            }
        }
        Ok(events)
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<hyper::Response<hyper::body::Incoming>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", &self.address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(sender.send_request(request.body(Full::new(body))?).await?)
    }
}

/// Text and finish reason of each choice of a streamed chat or completion.
///
/// # Errors
/// If an event is no JSON, or is an error.
pub fn assemble(events: &[Event]) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let mut choices: Vec<(String, Option<String>)> = Vec::new();
    for event in events.iter().filter(|event| event.data != "[DONE]") {
        let chunk: Value = serde_json::from_str(&event.data)?;
        if !chunk["error"].is_null() {
            bail!("in-stream error: {}", chunk["error"]);
        }
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let index = usize::try_from(choice["index"].as_u64().unwrap_or_default())?;
            choices.resize(choices.len().max(index + 1), (String::new(), None));
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            choices[index].0.push_str(text);
            if let Some(reason) = choice["finish_reason"].as_str() {
                choices[index].1 = Some(reason.to_owned());
            }
        }
    }
    Ok(choices)
}
