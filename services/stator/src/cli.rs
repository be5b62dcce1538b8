//! The commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bench, chat, child, drain, health, model, replay, service, tap, up};

/// Serves language models: an OpenAI-style API in front, engines behind, NATS between.
///
/// Settings come from, each over the one before: defaults, the TOML file of --config, the environment
/// (STATOR__SECTION__KEY, such as STATOR__INGRESS__PORT), flags.
#[derive(Parser)]
#[command(name = "stator", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a local cluster: a NATS server and all services, supervised
    Up(Box<up::UpArgs>),
    /// Service: the HTTP API
    Ingress(Box<service::IngressArgs>),
    /// Service: text to tokens and tokens to text, for one model
    Tokenizer(Box<service::TokenizerArgs>),
    /// Service: chooses the engine of a request
    Router(Box<service::RouterArgs>),
    /// Service: an engine that computes prompts for those that decode
    Prefill(Box<service::PrefillArgs>),
    /// Service: an engine that decodes (and prefills, where no prefill pool does)
    Decode(Box<service::DecodeArgs>),
    /// Show live traffic of the bus as JSON, one line a message
    Tap(tap::TapArgs),
    /// Talk to a running server
    Chat(chat::ChatArgs),
    /// Put load on a running server and measure it
    Bench(Box<bench::BenchArgs>),
    /// Print the card of a model: what would be served from a path
    Model(model::ModelArgs),
    /// Ask an instance to finish its work and go
    Drain(drain::DrainArgs),
    /// Decide recorded routing decisions again under other settings
    ReplayDecisions(replay::ReplayArgs),
    /// Exit with 0 if a url answers with success: a health check for containers
    Health(health::HealthArgs),
    #[command(hide = true)]
    WithParent(child::WithParentArgs),
}

impl Cli {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Up(args) => up::run(*args),
            Command::Ingress(args) => args.run(),
            Command::Tokenizer(args) => args.run(),
            Command::Router(args) => args.run(),
            Command::Prefill(args) => args.run(),
            Command::Decode(args) => args.run(),
            Command::Tap(args) => tap::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Bench(args) => bench::run(*args),
            Command::Model(args) => model::run(&args),
            Command::Drain(args) => drain::run(args),
            Command::ReplayDecisions(args) => replay::run(&args),
            Command::Health(args) => health::run(&args),
            Command::WithParent(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_and_their_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
