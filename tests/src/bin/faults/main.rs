//! The fault suite: real processes under load, something breaks, and no client may notice.

mod answer;
mod gauges;
mod load;
mod prefill;
mod requests;
mod rig;
mod scenario;
mod stage;
mod table;
mod verdict;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use rig::Rig;
use scenario::{Scenario, Target};

/// Breaks a cluster in every way that it must survive and prints what clients noticed.
#[derive(Parser)]
struct Options {
    /// Also on simulated engines with --sim-clients clients.
    #[arg(long)]
    long: bool,
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
    let mut good = true;
    for rig in rigs {
        println!("\n{}: {} clients", rig.name, rig.clients);
        let expected = stage::undisturbed(&rig).await?;
        table::head();
        for row in &rows {
            if matches!(row.target, Target::Service(service) | Target::Only(service) if !rig.has(service)) {
                table::absent(&row.name());
                continue;
            }
            let verdict = stage::play(&rig, *row, &expected, &options.logs).await;
            table::row(&row.name(), &verdict);
            good &= verdict.clean() && verdict.in_time();
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
