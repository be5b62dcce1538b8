//! The services as commands: their flags, resolved over file and environment, handed to their crates.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use actors::{
    process::ProcessFlags,
    settings::{Layer, SettingsError, resolve},
};

/// Exit code of a configuration that cannot work; the same settings will fail again.
pub const BAD_CONFIGURATION: u8 = 2;

#[derive(clap::Args)]
struct Common {
    /// TOML file with settings, one table a section
    #[arg(long, env = "STATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    process: ProcessFlags,
}

#[derive(clap::Args)]
pub struct IngressArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: ingress::IngressFlags,
}

#[derive(clap::Args)]
pub struct TokenizerArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: tokenizer::TokenizerFlags,
}

#[derive(clap::Args)]
pub struct RouterArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: router::RouterFlags,
}

#[derive(clap::Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: engine::EngineFlags,
    /// Decode one message body from standard input instead, as `stator tap --stdin` does
    #[arg(long)]
    stdin: bool,
}

#[derive(clap::Args)]
pub struct PrefillArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    flags: engine::EngineFlags,
}

impl IngressArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        start(self.common, self.flags, ingress::run)
    }
}

impl TokenizerArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        start(self.common, self.flags, tokenizer::run)
    }
}

impl RouterArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        start(self.common, self.flags, router::run)
    }
}

impl PrefillArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        start(self.common, self.flags, prefill::run)
    }
}

impl DecodeArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if self.stdin {
            anyhow::ensure!(!std::io::stdin().is_terminal(), "--stdin decodes what is piped in");
            return crate::tap::decode_stdin(None, false);
        }
        start(self.common, self.flags, decode::run)
    }
}

fn start<L: Layer>(
    common: Common,
    flags: L,
    run: impl FnOnce(L::Resolved, actors::process::ProcessSettings) -> ExitCode,
) -> anyhow::Result<ExitCode> {
    let resolved = both(flags, common.process, common.config.as_deref());
    match resolved {
        Ok((settings, process)) => Ok(run(settings, process)),
        Err(error) => {
            eprintln!("error: {error}");
            Ok(ExitCode::from(BAD_CONFIGURATION))
        }
    }
}

fn both<L: Layer>(
    flags: L,
    process: ProcessFlags,
    file: Option<&Path>,
) -> Result<(L::Resolved, actors::process::ProcessSettings), SettingsError> {
    Ok((resolve(flags, file)?, resolve(process, file)?))
}
