//! `stator bench engine`: scheduler and executor, without bus and HTTP.

mod drive;
mod limits;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use drive::Driver;
use engine::{EngineFlags, EngineSettings, offline::Offline};
use models::Model;
use report::{Figure, GIGA, Limits, Work};
use serde_json::json;

use super::cpu as machine;

#[derive(clap::Args)]
pub struct EngineBenchArgs {
    /// Prompt lengths to measure
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prefill: Vec<u32>,
    /// Batch sizes to measure
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<u32>,
    /// Tokens that a sequence holds on average while it is measured, a tenth more or less: it begins with fewer
    #[arg(long, default_value_t = 48)]
    context: u32,
    /// Output tokens of a sequence in a measurement
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Measurements of each figure; the median counts
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

pub fn run(args: EngineBenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.repeat > 0 && args.tokens > 0 && args.context > 0,
        "--repeat, --tokens and --context must be positive"
    );
    ensure!(
        args.batch.iter().chain(&args.prefill).all(|&size| size > 0),
        "--batch and --prefill must be positive"
    );
    ensure!(
        drive::begins(args.context, args.tokens),
        "--context {} is too short for sequences that grow by --tokens {}",
        args.context,
        args.tokens
    );
    let settings = actors::settings::resolve(args.engine, None)?;
    let engine = Offline::new(&settings)?;
    let work = work(&settings, &engine)?;
    let (threads, limits) = limits(&settings, &engine);
    let probe_before = machine::probe_ms();

    let (mut driver, mut figures) = (Driver::new(engine), Vec::new());
    for &length in &args.prefill {
        let measured = repeat(args.repeat, || driver.prefill(length))?;
        figures.push(Figure::of_prompt(length, measured, &work, &limits));
    }
    for &batch in &args.batch {
        let mut kv_tokens = 0.0;
        let measured = repeat(args.repeat, || {
            let decoded = driver.decode(batch, args.context, args.tokens)?;
            kv_tokens = decoded.kv_tokens;
            Ok(decoded.rate)
        })?;
        figures.push(Figure::of_output(batch, kv_tokens, measured, &work, &limits));
    }

    report::print(&figures);
    let (probe, spec) = ((probe_before, machine::probe_ms()), driver.engine().spec());
    println!(
        "{}: {:.1} MiB of weights a step, read rate {:.1} GB/s, int8 peak {} GOP/s, {threads} threads, CPU probe {:.0} ms \
         before, {:.0} ms after",
        spec.device,
        work.weight_bytes / f64::from(1 << 20),
        limits.read / GIGA,
        limits.int8.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}", rate / GIGA)),
        probe.0,
        probe.1
    );
    if let Some(path) = &args.json {
        let report = json!({
            "model": settings.model_path,
            "device": spec.device,
            "threads": threads,
            "numerics_class": spec.numerics_class,
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

fn work(settings: &EngineSettings, engine: &Offline) -> anyhow::Result<Work> {
    let model = Model::open(settings.model_path.as_deref().context("--model-path is needed")?)?;
    let spec = engine.spec();
    let kv_token_bytes = spec.kv.page_bytes() as f64 / f64::from(spec.page_size);
    Ok(Work::of(&model, engine.weight_bytes, kv_token_bytes))
}

/// Threads that compute, and what the device can do at best.
fn limits(settings: &EngineSettings, engine: &Offline) -> (usize, Limits) {
    let threads = match settings.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let limits = match engine.read_rate {
        Some(read) => Limits { read, int8: None },
        None => Limits { read: limits::read_rate(threads), int8: limits::int8_rate(threads) },
    };
    (threads, limits)
}

fn repeat(times: usize, mut measure: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
    measure().context("warming up")?;
    let mut measured = (0..times).map(|_| measure()).collect::<anyhow::Result<Vec<f64>>>()?;
    measured.sort_by(f64::total_cmp);
    Ok(measured)
}
