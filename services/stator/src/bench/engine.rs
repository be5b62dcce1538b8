//! `stator bench engine`: the executor alone, fed with batches by hand.

mod drive;
mod limits;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use cpu::{CpuConfig, CpuExecutor, KvBudget};
use drive::Driver;
use models::{Executor, Model};
use report::{Figure, GIGA, Limits, Work};
use serde_json::json;

use super::cpu as machine;

#[derive(clap::Args)]
pub struct EngineBenchArgs {
    /// GGUF file or Hugging Face folder
    #[arg(long)]
    model_path: PathBuf,
    /// Compute threads; default: all cores
    #[arg(long)]
    threads: Option<usize>,
    /// Prompt lengths to measure
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prefill: Vec<u32>,
    /// Batch sizes to measure
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<u32>,
    /// Tokens that each sequence holds before its first measured token
    #[arg(long, default_value_t = 16)]
    context: u32,
    /// Output tokens of a sequence in a measurement
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Prompt tokens of one step
    #[arg(long, default_value_t = 512)]
    chunked_prefill_size: u32,
    /// Measurements of each figure; the median counts
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &EngineBenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.repeat > 0 && args.tokens > 0 && args.context > 0,
        "--repeat, --tokens and --context must be positive"
    );
    let batch = args.batch.iter().copied().max().context("--batch names none")?;
    let longest_prefill = args.prefill.iter().copied().max().context("--prefill names none")?;
    ensure!(batch > 0 && longest_prefill > 0, "--batch and --prefill must be positive");
    let model = Model::open(&args.model_path)?;
    let mut config = CpuConfig::default();
    config.threads = args.threads.unwrap_or(config.threads);
    config.slots = batch;
    config.max_batch_tokens = args.chunked_prefill_size.max(batch);
    let longest = longest_prefill.max(args.context + args.tokens) + 1;
    let pages_each = longest.div_ceil(config.page_size);
    config.kv = KvBudget::Pages(pages_each * batch);
    config.context_length = Some(pages_each * config.page_size);
    let mut executor = CpuExecutor::new(&model, &config, &mut |_| {})?;
    let work = Work::of(&model, executor.weight_bytes_per_step());
    let limits = Limits { read: limits::read_rate(config.threads), int8: limits::int8_rate(config.threads) };
    let probe_before = machine::probe_ms();

    let mut driver = Driver::new(&mut executor, pages_each, args.chunked_prefill_size);
    let mut figures = Vec::new();
    for &length in &args.prefill {
        let measured = repeat(args.repeat, || driver.prefill(length))?;
        figures.push(Figure::of_prompt(length, measured, &work, &limits));
    }
    for &batch in &args.batch {
        let measured = repeat(args.repeat, || driver.decode(batch, args.context, args.tokens))?;
        figures.push(Figure::of_output(batch, measured, &work, &limits));
    }

    report::print(&figures);
    let probe = (probe_before, machine::probe_ms());
    println!(
        "{} threads, {:.1} MiB of weights a step, read rate {:.1} GB/s, int8 peak {} GOP/s, CPU probe {:.0} ms \
         before, {:.0} ms after",
        config.threads,
        work.weight_bytes / f64::from(1 << 20),
        limits.read / GIGA,
        limits.int8.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}", rate / GIGA)),
        probe.0,
        probe.1
    );
    if let Some(path) = &args.json {
        let report = json!({
            "model": args.model_path,
            "threads": config.threads,
            "numerics_class": executor.spec().numerics_class,
            "context": args.context,
            "tokens": args.tokens,
            "weight_bytes_per_step": work.weight_bytes,
            "read_rate_bytes_per_s": limits.read,
            "int8_peak_operations_per_s": limits.int8,
            "cpu_probe_ms": probe,
            "figures": figures,
        });
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn repeat(times: usize, mut measure: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
    measure().context("warming up")?;
    let mut measured = (0..times).map(|_| measure()).collect::<anyhow::Result<Vec<f64>>>()?;
    measured.sort_by(f64::total_cmp);
    Ok(measured)
}
