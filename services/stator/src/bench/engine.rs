//! `stator bench engine`: the executor alone, fed with batches by hand.

mod drive;
mod read_rate;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use cpu::{CpuConfig, CpuExecutor, KvBudget};
use drive::Driver;
use models::{Executor, Model};
use serde::Serialize;
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

/// One figure.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    name: String,
    tokens_per_s: f64,
    /// All measurements, sorted.
    measured: Vec<f64>,
    /// Weights read per second, as a share of what the machine can read; decoding only.
    share_of_read_rate: Option<f64>,
    /// Multiply-adds in the matrices, 10^9 operations a second (two each).
    gops: f64,
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
    let weight_bytes = executor.weight_bytes_per_step() as f64;
    let parameters = matrix_parameters(&model);
    let read_rate = read_rate::bytes_per_second(config.threads);
    let probe_before = machine::probe_ms();

    let mut driver = Driver::new(&mut executor, pages_each, args.chunked_prefill_size);
    let mut figures = Vec::new();
    for &length in &args.prefill {
        let measured = repeat(args.repeat, || driver.prefill(length))?;
        figures.push(figure(format!("pp{length}"), measured, parameters, None));
    }
    for &batch in &args.batch {
        let measured = repeat(args.repeat, || driver.decode(batch, args.context, args.tokens))?;
        let steps = |rate: f64| rate / f64::from(batch);
        let share = |rate: f64| steps(rate) * weight_bytes / read_rate;
        figures.push(figure(format!("tg batch {batch}"), measured, parameters, Some(&share)));
    }

    println!(
        "{:14}{:>12}{:>12}{:>12}{:>14}{:>10}",
        "", "token/s", "slowest", "fastest", "of read rate", "GOP/s"
    );
    for figure in &figures {
        let share = figure
            .share_of_read_rate
            .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        println!(
            "{:14}{:>12.1}{:>12.1}{:>12.1}{share:>14}{:>10.0}",
            figure.name,
            figure.tokens_per_s,
            figure.measured.first().copied().unwrap_or_default(),
            figure.measured.last().copied().unwrap_or_default(),
            figure.gops
        );
    }
    let probe = (probe_before, machine::probe_ms());
    println!(
        "{} threads, {:.1} MiB of weights a step, read rate {:.1} GB/s, CPU probe {:.0} ms before, {:.0} ms after",
        config.threads,
        weight_bytes / f64::from(1 << 20),
        read_rate / 1e9,
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
            "weight_bytes_per_step": weight_bytes,
            "read_rate_bytes_per_s": read_rate,
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

fn figure(name: String, measured: Vec<f64>, parameters: f64, share: Option<&dyn Fn(f64) -> f64>) -> Figure {
    let median = measured[measured.len() / 2];
    let share_of_read_rate = share.map(|share| share(median));
    Figure { name, tokens_per_s: median, share_of_read_rate, gops: 2.0 * parameters * median / 1e9, measured }
}

/// Weights that every input token is multiplied with: the layers' matrices, without embedding and head.
fn matrix_parameters(model: &Model) -> f64 {
    let spec = &model.spec;
    let [hidden, heads, kv_heads, head_dim, inner, layers] =
        [spec.hidden_size, spec.heads, spec.kv_heads, spec.head_dim, spec.intermediate_size, spec.layers]
            .map(f64::from);
    layers * hidden * (2.0 * heads * head_dim + 2.0 * kv_heads * head_dim + 3.0 * inner)
}
