//! `stator health`: for health checks of containers, which have no other HTTP client.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;

use crate::http::{Refused, Server};

#[derive(clap::Args)]
pub struct HealthArgs {
    /// What must answer with success
    #[arg(long, default_value = "http://127.0.0.1:8000/health")]
    url: String,
    /// Seconds it may take
    #[arg(long, default_value_t = 2.0)]
    timeout: f64,
}

/// Exit code 0 if the url answers with success, else 1 and the reason.
pub fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wait = Duration::try_from_secs_f64(args.timeout).context("--timeout")?;
    runtime.block_on(async { tokio::time::timeout(wait, ask(&args.url)).await.context("no answer in time")? })
}

async fn ask(url: &str) -> anyhow::Result<ExitCode> {
    let mut connection = Server::new(url, None)?.connect().await?;
    let response = connection.send(Method::GET, "", &[], Bytes::new()).await?;
    if response.status().is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Refused::read(response).await.into())
}
