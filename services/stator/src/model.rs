//! `stator model`: what would be served from a path.

use std::{path::PathBuf, process::ExitCode};

use catalog::Naming;

#[derive(clap::Args)]
pub struct ModelArgs {
    /// GGUF file or Hugging Face folder
    path: PathBuf,
    /// Name that clients would ask for; default: that of the folder or file
    #[arg(long)]
    served_model_name: Option<String>,
    /// A bound below what the model was made for, in tokens
    #[arg(long)]
    context_length: Option<u32>,
}

pub fn run(args: &ModelArgs) -> anyhow::Result<ExitCode> {
    let naming = Naming { served_name: args.served_model_name.clone(), context_length: args.context_length };
    let (_, card) = catalog::open(&args.path, &naming)?;
    println!("{}", serde_json::to_string_pretty(&card)?);
    println!("pool: {}", card.pool());
    Ok(ExitCode::SUCCESS)
}
