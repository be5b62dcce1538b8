//! `stator chat`: a conversation in the terminal.

mod talk;

pub use talk::first_model;

use std::{
    io::{IsTerminal, Read},
    process::ExitCode,
};

use anyhow::Context;
use talk::{Conversation, Reply};

use crate::http::ServerArgs;

#[derive(clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Model to talk to; default: the first that the server lists
    #[arg(long)]
    model: Option<String>,
    /// What the model is told about itself
    #[arg(long)]
    system: Option<String>,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 1024)]
    max_tokens: u32,
    /// 0 is greedy; default: the model's own
    #[arg(long)]
    temperature: Option<f32>,
    /// Ask this, print the answer, exit
    #[arg(long, value_name = "PROMPT")]
    once: Option<String>,
}

pub fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(chat(args))
}

async fn chat(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.server()?;
    let model = match args.model {
        Some(model) => model,
        None => talk::first_model(&server).await?,
    };
    let mut conversation = Conversation::new(server, model, args.system, args.max_tokens, args.temperature);
    let piped = args.once.is_none() && !std::io::stdin().is_terminal();
    let prompt = match args.once {
        Some(prompt) => Some(prompt),
        None if piped => {
            let mut prompt = String::new();
            std::io::stdin().read_to_string(&mut prompt).context("standard input")?;
            Some(prompt)
        }
        None => None,
    };
    match prompt {
        Some(prompt) => Ok(match conversation.ask(prompt.trim()).await? {
            Reply::Whole => ExitCode::SUCCESS,
            Reply::Interrupted => ExitCode::from(130),
        }),
        None => interactive(conversation).await,
    }
}

const HELP: &str = "/reset forgets the conversation, /system TEXT sets what the model is told about itself,\n\
                    /quit (or Ctrl-D) leaves; Ctrl-C stops an answer";

async fn interactive(mut conversation: Conversation) -> anyhow::Result<ExitCode> {
    println!("{}; {HELP}", conversation.model());
    let mut lines = talk::lines_of_terminal();
    loop {
        talk::show_prompt();
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            println!();
            return Ok(ExitCode::SUCCESS);
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(ExitCode::SUCCESS),
            "/reset" => conversation.reset(),
            "/help" => println!("{HELP}"),
            text => match text.strip_prefix("/system") {
                Some(system) => conversation.set_system(system.trim()),
                None if text.starts_with('/') => println!("unknown command; {HELP}"),
                None => {
                    if let Err(error) = conversation.ask(text).await {
                        eprintln!("error: {error:#}");
                    }
                }
            },
        }
    }
}
