//! `stator tap`: what travels on the bus, as JSON.

mod filter;
mod message;
mod redact;
mod time;

use std::{
    collections::{HashMap, VecDeque},
    io::{IsTerminal, Read, Write},
    process::ExitCode,
    time::SystemTime,
};

use async_nats::Message;
use filter::Filter;
use futures_util::StreamExt;
use message::Decoded;
use messages::{InstanceId, Role, subject};
use serde_json::json;

use crate::bus::{Cluster, ClusterArgs};

/// Requests whose answers are still awaited; older ones are forgotten.
const AWAITED_AT_MOST: usize = 4096;

#[derive(clap::Args)]
pub struct TapArgs {
    /// What to listen to; default: everything of the namespace
    subject: Option<String>,
    /// Only messages of this request: its bus id, or the client's x-request-id
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Only messages to or from this role
    #[arg(long)]
    role: Option<Role>,
    /// Only messages of pools whose name contains this
    #[arg(long)]
    pool: Option<String>,
    /// Only these kinds: generate, tokenize, detokenize, submit, cancel, attach, ping, drain, frames, load, lease, reply
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// Also show the answers to requests (who took custody)
    #[arg(long)]
    replies: bool,
    /// Show prompts, texts and token ids; without this only their lengths
    #[arg(long)]
    show_content: bool,
    /// Stop after this many messages
    #[arg(long)]
    count: Option<u64>,
    /// Decode one message body from standard input instead: `nats sub --translate 'stator tap --stdin' SUBJECT`
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub fn run(args: TapArgs) -> anyhow::Result<ExitCode> {
    if args.stdin {
        anyhow::ensure!(!std::io::stdin().is_terminal(), "--stdin decodes what is piped in");
        return decode_stdin(args.subject.as_deref(), args.show_content);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(listen(args))
}

/// Decodes one body from standard input; without a subject its type is found by its fields.
pub fn decode_stdin(subject: Option<&str>, show_content: bool) -> anyhow::Result<ExitCode> {
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    let mut decoded = match subject {
        Some(subject) => message::decode(subject, &body),
        None => message::guess(&body),
    };
    redact::tidy(&mut decoded.body, show_content);
    println!("{}", json!({"kind": decoded.kind, "body": decoded.body}));
    Ok(ExitCode::SUCCESS)
}

async fn listen(args: TapArgs) -> anyhow::Result<ExitCode> {
    let Cluster { client, namespace } = args.cluster.connect().await?;
    let wanted = args.subject.unwrap_or_else(|| subject::everything(&namespace));
    let mut messages = client.subscribe(wanted).await?.boxed();
    if args.replies {
        let replies = client.subscribe("_INBOX.>").await?;
        messages = futures_util::stream::select(messages, replies).boxed();
    }
    client.flush().await?;
    let filter = Filter { request: args.request, role: args.role, pool: args.pool, kinds: args.kind };
    let mut awaited = Awaited::default();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = tokio::select! {
            message = messages.next() => message,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(message) = message else { break };
        let Some(line) = line(&message, &filter, &mut awaited, args.show_content) else { continue };
        // A reader that went away (`stator tap | head`) ends the tap.
        if writeln!(std::io::stdout().lock(), "{line}").is_err() {
            break;
        }
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

/// One message as a line of JSON; `None` if it is filtered out, or the answer to something unseen.
fn line(message: &Message, filter: &Filter, awaited: &mut Awaited, show_content: bool) -> Option<String> {
    let mut subject = message.subject.as_str();
    let mut decoded = if subject.starts_with("_INBOX.") {
        let asked = awaited.take(subject)?;
        let decoded = message::reply(&message.payload, message.status.map(|status| status.as_u16()));
        return filter.lets_reply_through(&asked, &decoded).then(|| {
            let Asked { subject: to, ids } = asked;
            render("reply to", &to, &ids, decoded, show_content)
        });
    } else {
        message::decode(subject, &message.payload)
    };
    let ids = Ids::of(message);
    if let Some(reply) = &message.reply {
        awaited.put(reply.to_string(), Asked { subject: subject.to_owned(), ids: ids.clone() });
    }
    if subject.is_empty() {
        subject = "?";
    }
    filter
        .lets_through(subject, &ids, &mut decoded)
        .then(|| render("subject", subject, &ids, decoded, show_content))
}

fn render(label: &str, subject: &str, ids: &Ids, mut decoded: Decoded, show_content: bool) -> String {
    redact::tidy(&mut decoded.body, show_content);
    let mut line = serde_json::Map::new();
    line.insert("time".to_owned(), time::rfc3339(SystemTime::now()).into());
    line.insert(label.to_owned(), subject.into());
    line.insert("kind".to_owned(), decoded.kind.into());
    if let Some(from) = &decoded.from {
        line.insert("from".to_owned(), from.as_str().into());
    }
    for (name, value) in &ids.0 {
        line.insert(name.clone(), value.as_str().into());
    }
    line.insert("body".to_owned(), decoded.body);
    serde_json::Value::Object(line).to_string()
}

/// The ids in a message's headers.
#[derive(Debug, Clone, Default)]
struct Ids(Vec<(String, String)>);

impl Ids {
    fn of(message: &Message) -> Self {
        use messages::envelope::header;
        let Some(headers) = &message.headers else { return Self::default() };
        let names = [
            (header::REQUEST, "request"),
            (header::ATTEMPT, "attempt"),
            (header::LABEL, "label"),
            (header::DEADLINE_MS, "deadline_ms"),
            (header::TRACEPARENT, "traceparent"),
        ];
        let found = names
            .into_iter()
            .filter_map(|(header, name)| Some((name.to_owned(), headers.get(header)?.as_str().to_owned())));
        Self(found.collect())
    }

    fn has(&self, id: &str) -> bool {
        self.0.iter().any(|(name, value)| (name == "request" || name == "label") && value == id)
    }
}

struct Asked {
    subject: String,
    ids: Ids,
}

/// Requests whose answers have not been seen, by reply subject.
#[derive(Default)]
struct Awaited {
    by_reply: HashMap<String, Asked>,
    order: VecDeque<String>,
}

impl Awaited {
    fn put(&mut self, reply: String, asked: Asked) {
        if self.order.len() >= AWAITED_AT_MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_reply.remove(&oldest);
        }
        self.order.push_back(reply.clone());
        self.by_reply.insert(reply, asked);
    }

    fn take(&mut self, reply: &str) -> Option<Asked> {
        self.by_reply.remove(reply)
    }
}

/// The role that an instance's name begins with.
fn role_of(instance: &InstanceId) -> Option<Role> {
    instance.as_str().rsplit_once('-').and_then(|(role, _)| role.parse().ok())
}
