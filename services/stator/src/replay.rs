//! `stator replay-decisions`: what other settings of a router would have made of recorded moments.

use std::{fs::File, io::BufReader, path::PathBuf, process::ExitCode};

use anyhow::Context;
use router::Changes;

#[derive(clap::Args)]
pub struct ReplayArgs {
    /// What a router wrote to --record-decisions
    file: PathBuf,
    #[command(flatten)]
    changes: Changes,
}

pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let file = File::open(&args.file).with_context(|| format!("{} cannot be opened", args.file.display()))?;
    let replayed = router::replay(BufReader::new(file), &args.changes)?;
    println!("{}", serde_json::to_string_pretty(&replayed)?);
    Ok(ExitCode::SUCCESS)
}
