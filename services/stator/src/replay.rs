//! `stator replay-decisions`: what another policy would have made of recorded moments.

use std::{fs::File, io::BufReader, path::PathBuf, process::ExitCode};

use anyhow::Context;
use router::Policy;

#[derive(clap::Args)]
pub struct ReplayArgs {
    /// What a router wrote to --record-decisions
    file: PathBuf,
    /// The policy to decide by: kv, least-loaded, power-of-two, round-robin or random
    #[arg(long)]
    policy: Policy,
}

pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let file = File::open(&args.file).with_context(|| format!("{} cannot be opened", args.file.display()))?;
    let replayed = router::replay(BufReader::new(file), args.policy)?;
    println!("{}", serde_json::to_string_pretty(&replayed)?);
    Ok(ExitCode::SUCCESS)
}
