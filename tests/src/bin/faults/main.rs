//! The fault suite: real processes under load, something breaks, and no client may notice.

mod answer;
mod chaos;
mod gauges;
mod load;
mod poison;
mod prefill;
mod requests;
mod rig;
mod scenario;
mod stage;
mod table;
mod verdict;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

use rig::Rig;
use scenario::Scenario;

/// Seconds of random faults in the long suite.
const LONG_CHAOS: u64 = 600;
const POISON: &str = "poison: engines die of it";

/// Breaks a cluster in every way that it must survive and prints what clients noticed.
#[derive(Parser)]
struct Options {
    /// Everything: also on simulated engines, and ten minutes of chaos.
    #[arg(long)]
    long: bool,
    /// Seconds of random faults after the rows.
    #[arg(long, value_name = "SECONDS")]
    chaos: Option<u64>,
    /// Of the random faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Clients at once on the real model.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Clients at once on simulated engines.
    #[arg(long, default_value_t = 512)]
    sim_clients: usize,
    /// Skip the real model.
    #[arg(long)]
    only_sim: bool,
    /// Folder for the logs of rows that fail.
    #[arg(long, default_value = "target/faults")]
    logs: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let mut rigs = Vec::new();
    if !options.only_sim {
        rigs.push(Rig::real(options.clients));
    }
    if options.long || options.only_sim {
        rigs.push(Rig::sim(options.sim_clients));
    }
    let rows: Vec<Scenario> =
        scenario::all().into_iter().filter(|row| row.name().contains(&options.only)).collect();
    let chaos = options.chaos.or(options.long.then_some(LONG_CHAOS)).map(Duration::from_secs);
    let mut good = true;
    for rig in rigs {
        println!("\n{}: {} clients", rig.name, rig.clients);
        let expected = stage::undisturbed(&rig).await?;
        table::head();
        for row in &rows {
            let verdict = stage::play(&rig, *row, &expected, &options.logs).await;
            table::row(&row.name(), &verdict);
            good &= verdict.good();
        }
        if POISON.contains(&options.only) {
            let verdict = poison::run(&rig, &expected, &options.logs).await;
            table::row(POISON, &verdict);
            good &= verdict.good();
        }
        if let Some(time) = chaos {
            let verdict = chaos::run(&rig, time, options.seed, &expected, &options.logs).await;
            table::row(&format!("chaos: {} s, seed {}", time.as_secs(), options.seed), &verdict);
            good &= verdict.good();
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
