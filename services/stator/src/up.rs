//! `stator up`: a local cluster of one process a service, supervised.

mod backoff;
mod board;
mod cluster;
mod flags;
pub mod home;
mod job;
mod nats;
mod plan;
mod progress;
mod shares;

use std::{path::PathBuf, process::ExitCode};

use actors::settings::{layered, resolve};
use flags::ServiceFlags;
use plan::{ModelChoice, Replicas};

use crate::service::BAD_CONFIGURATION;

actors::settings! {
    /// The local cluster.
    pub struct UpSettings, UpFlags in "up" {
        /// Model to serve, PATH[=NAME]: a GGUF file or a Hugging Face folder; several: repeat or separate by commas.
        list model: ModelChoice;
        /// Processes of a service, ROLE=COUNT; tokenizers and engines are counted per model. Default 1 each, no prefill.
        list replicas: Replicas;
        /// The nats-server to start where no --nats-url is given; 2.11 or newer.
        value nats_server: PathBuf = PathBuf::from("nats-server");
    }
}

#[derive(clap::Args)]
pub struct UpArgs {
    /// TOML file with settings, one table a section
    #[arg(long, env = "STATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    up: UpFlags,
    #[command(flatten)]
    services: ServiceFlags,
}

/// Runs the cluster until it is told to stop, or cannot go on.
pub fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let file = args.config.as_deref();
    let layers = || {
        Ok::<_, actors::settings::SettingsError>((
            resolve(args.up.clone(), file)?,
            resolve(args.services.process.clone(), file)?,
            resolve(args.services.ingress.clone(), file)?,
            layered(args.services.engine.clone(), file)?,
        ))
    };
    let (settings, process, ingress, engine) = match layers() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(BAD_CONFIGURATION));
        }
    };
    let intent =
        plan::Intent { settings, process, ingress, engine, flags: args.services, config: args.config };
    // One thread: children get their death signal when the thread that made them ends.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(cluster::run(intent))
}
