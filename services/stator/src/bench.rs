//! `stator bench`: load on a running server over HTTP, measured where the client stands; and an engine alone.

mod arrival;
mod cpu;
mod engine;
mod load;
mod prompt;
mod report;
mod request;
mod stats;
mod words;

use std::{ops::RangeInclusive, path::PathBuf, process::ExitCode, str::FromStr};

use crate::http::ServerArgs;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure scheduler and executor without the fabric: prompt tokens a second, and output tokens a second by batch size
    Engine(Box<engine::EngineBenchArgs>),
}

#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Model to ask; default: the first that the server lists
    #[arg(long)]
    model: Option<String>,
    /// Closed loop: requests kept in flight
    #[arg(long, default_value_t = 8, conflicts_with = "request_rate")]
    concurrency: usize,
    /// Open loop: requests a second, arriving at random (Poisson)
    #[arg(long, value_name = "PER_SECOND")]
    request_rate: Option<f64>,
    /// Open loop: arrivals beyond so many in flight are counted as errors, not sent
    #[arg(long, default_value_t = 4096)]
    max_in_flight: usize,
    /// Requests to send; default 100, or as many as the duration allows
    #[arg(long)]
    num_requests: Option<u64>,
    /// Seconds in which requests are begun
    #[arg(long)]
    duration: Option<f64>,
    /// Requests sent first and not measured
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Input tokens of a request, chat template included: N or MIN:MAX
    #[arg(long, default_value = "100")]
    isl: Span,
    /// Output tokens of a request at most: N or MIN:MAX
    #[arg(long, default_value = "100")]
    osl: Span,
    /// Output goes on to its full length: end tokens are ignored
    #[arg(long)]
    ignore_eos: bool,
    /// Prompts that begin alike come in this many kinds
    #[arg(long, default_value_t = 0, value_name = "GROUPS")]
    prefix_groups: u64,
    /// Input tokens that the prompts of a group share
    #[arg(long, default_value_t = 0, requires = "prefix_groups")]
    prefix_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draws prompts, lengths and arrivals; the same seed sends the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also report CPU time and memory of these processes of this machine, NAME=PID
    #[arg(long, value_delimiter = ',', value_name = "NAME=PID")]
    cpu_of: Vec<cpu::Watched>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A number, or a range from which each request draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span(pub RangeInclusive<u32>);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        let (low, high) = text.split_once(':').unwrap_or((text, text));
        match (number(low), number(high)) {
            (Some(low), Some(high)) if low <= high => Ok(Self(low..=high)),
            _ => Err(format!("'{text}' is neither a positive number nor MIN:MAX")),
        }
    }
}

pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        Some(What::Engine(args)) => engine::run(*args),
        None => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(load::run(args.load))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_numbers_or_ranges() {
        assert_eq!("100".parse(), Ok(Span(100..=100)));
        assert_eq!("50:100".parse(), Ok(Span(50..=100)));
        for wrong in ["0", "100:50", "a", "1:", "-3"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
