//! The one binary of stator: every service, the local cluster, and the tools to look at it.

mod bench;
mod bus;
mod chat;
mod child;
mod cli;
mod drain;
mod health;
mod http;
mod model;
mod replay;
mod service;
mod tap;
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The cuda executor compiles its kernels in children of this program.
    if let Some(code) = cuda::nvrtc_worker(std::env::args_os()) {
        return ExitCode::from(code);
    }
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
