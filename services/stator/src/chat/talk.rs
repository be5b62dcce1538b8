//! The conversation and its one request: ask, print what comes, remember it.

use std::io::{BufRead, Write};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::http::{Refused, Server, sse::Events};

#[derive(Serialize, Clone)]
struct Message {
    role: &'static str,
    content: String,
}

/// How an answer ended.
pub enum Reply {
    Whole,
    /// Ctrl-C: what had come stays in the history.
    Interrupted,
}

pub struct Conversation {
    server: Server,
    model: String,
    system: Option<String>,
    max_tokens: u32,
    temperature: Option<f32>,
    history: Vec<Message>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    error: Option<ChunkError>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    delta: Delta,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChunkError {
    message: String,
}

impl Conversation {
    pub fn new(
        server: Server,
        model: String,
        system: Option<String>,
        max_tokens: u32,
        temperature: Option<f32>,
    ) -> Self {
        Self { server, model, system, max_tokens, temperature, history: Vec::new() }
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// An empty text takes the system prompt away.
    pub fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_owned());
    }

    /// Asks, prints the answer as it comes and remembers both. A question that failed is forgotten.
    pub async fn ask(&mut self, question: &str) -> anyhow::Result<Reply> {
        if question.is_empty() {
            bail!("nothing was asked");
        }
        self.history.push(Message { role: "user", content: question.to_owned() });
        let mut answer = String::new();
        let outcome = tokio::select! {
            outcome = self.stream(&mut answer) => outcome.map(|()| Reply::Whole),
            _ = tokio::signal::ctrl_c() => Ok(Reply::Interrupted),
        };
        println!();
        if outcome.is_err() {
            self.history.pop();
        } else {
            self.history.push(Message { role: "assistant", content: answer });
        }
        outcome
    }

    fn body(&self) -> Bytes {
        let system = self.system.iter().map(|text| Message { role: "system", content: text.clone() });
        let messages: Vec<Message> = system.chain(self.history.iter().cloned()).collect();
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "stream": true,
            "max_completion_tokens": self.max_tokens,
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        body.to_string().into()
    }

    async fn stream(&self, answer: &mut String) -> anyhow::Result<()> {
        let mut connection = self.server.connect().await?;
        let response = connection.send(Method::POST, "/v1/chat/completions", &[], self.body()).await?;
        if !response.status().is_success() {
            return Err(Refused::read(response).await.into());
        }
        let (mut body, mut events) = (response.into_body(), Events::default());
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the connection broke")?;
            let Some(piece) = frame.data_ref() else { continue };
            events.feed(piece).map_err(|_| anyhow::anyhow!("the server's answer makes no sense"))?;
            while let Some(data) = events.next() {
                if data == b"[DONE]" {
                    return Ok(());
                }
                show(&data, answer)?;
            }
        }
        bail!("the answer ended early: the connection was closed")
    }
}

fn show(data: &[u8], answer: &mut String) -> anyhow::Result<()> {
    let chunk: Chunk = serde_json::from_slice(data).context("the server's answer makes no sense")?;
    if let Some(error) = chunk.error {
        bail!("{}", error.message);
    }
    for text in chunk.choices.into_iter().filter_map(|choice| choice.delta.content) {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        answer.push_str(&text);
    }
    Ok(())
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// The first model of the server's list.
pub async fn first_model(server: &Server) -> anyhow::Result<String> {
    let models: Models = server.connect().await?.json(Method::GET, "/v1/models", Bytes::new()).await?;
    let first = models.data.into_iter().next();
    Ok(first.context("the server has no model yet; is the cluster still starting?")?.id)
}

/// Lines as they are typed; `None` at the end. A thread of its own, for reading a terminal cannot be cancelled.
pub fn lines_of_terminal() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

pub fn show_prompt() {
    print!("> ");
    // A terminal that cannot be written to is noticed by the next line of the answer.
    let _ = std::io::stdout().flush();
}
