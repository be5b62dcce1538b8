//! Times of whole steps through the executor, and a comparison with another implementation.

use std::{fmt::Write, path::PathBuf, time::Instant};

use cuda::{CudaConfig, CudaError, CudaExecutor, KvBudget, KvFormat, WeightFormat, ops::GemmMode};
use models::{
    Batch, DType, DecoderSpec, Executor, Model, OpenSlot, PLACEHOLDER, SamplingParams, SequenceStep, SlotId,
    StepId, synthetic,
};

use crate::{
    bench,
    executor::{PAGE_SIZE, config, score},
    harness::Context,
    random::Random,
};

const STEPS: usize = 24;
const WARM_UP: usize = 4;

fn qwen3_32b_spec() -> DecoderSpec {
    DecoderSpec {
        hidden_size: 5120,
        layers: 64,
        heads: 64,
        intermediate_size: 25_600,
        ..synthetic::qwen3_8b_spec()
    }
}

/// A model with random weights, and the steps that are timed: decodes as context and batch, prefills as tokens.
struct Timed {
    name: &'static str,
    spec: DecoderSpec,
    weights: WeightFormat,
    kv_format: KvFormat,
    decodes: &'static [(usize, usize)],
    prefills: &'static [usize],
}

fn models() -> [Timed; 4] {
    let decodes = &[(1024, 1), (1024, 8), (1024, 64), (1024, 256), (8192, 1), (8192, 8)];
    let prefills = &[1024, 8192];
    let (weights, kv_format) = (WeightFormat::AsStored, KvFormat::Bf16);
    [
        Timed {
            name: "Qwen3-0.6B",
            spec: synthetic::qwen3_0_6b_spec(),
            weights,
            kv_format,
            decodes,
            prefills,
        },
        Timed { name: "Qwen3-8B", spec: synthetic::qwen3_8b_spec(), weights, kv_format, decodes, prefills },
        Timed {
            name: "Qwen3-32B-FP8",
            spec: qwen3_32b_spec(),
            weights: WeightFormat::Fp8,
            kv_format,
            decodes: &[(1024, 1), (1024, 8), (1024, 64)],
            prefills,
        },
        Timed {
            name: "Qwen3-8B-KV8",
            spec: synthetic::qwen3_8b_spec(),
            weights,
            kv_format: KvFormat::Fp8E4m3,
            decodes: &[(1024, 64), (1024, 256), (8192, 8)],
            prefills,
        },
    ]
}

/// Decode and prefill steps of the models whose names contain `filter`, in both modes.
pub fn run(context: Context, filter: &str) -> Result<(), CudaError> {
    let read_rate = bench::read_rate(&context.device)?;
    drop(context);
    println!("read rate {:.3} TB/s", read_rate * 1e-12);
    println!(
        "\n{:<14}{:<16}{:<24}{:>6}{:>10}{:>10}{:>9}{:>9}",
        "model", "kernels", "step", "batch", "device ms", "wall ms", "floor ms", "% floor"
    );
    for Timed { name, spec, weights, kv_format, decodes, prefills } in models() {
        if !name.contains(filter) {
            continue;
        }
        for mode in [GemmMode::BatchInvariant, GemmMode::BatchVariant] {
            let begin = Instant::now();
            let config = CudaConfig {
                gemm: mode,
                weights,
                kv_format,
                ..config(256, 8192, KvBudget::MemoryFraction(0.9))
            };
            let mut executor = CudaExecutor::dummy(&spec, &config)?;
            executor.fill_kv()?;
            let seconds = begin.elapsed().as_secs_f64();
            let launches = executor.launches_per_decode_step();
            println!("# {name} {mode:?}: ready in {seconds:.2} s, {launches} launches a decode step");
            for &(nominal, batch) in decodes {
                decode(&mut executor, name, mode, nominal, batch, read_rate)?;
            }
            for &tokens in prefills {
                prefill(&mut executor, name, mode, tokens)?;
            }
        }
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn lost(error: models::ExecutorError) -> CudaError {
    CudaError::Shape(error.to_string())
}

/// Greedy decode of a batch, two steps in flight, contexts drawn around the nominal one, pages shuffled.
fn decode(
    executor: &mut CudaExecutor,
    name: &str,
    mode: GemmMode,
    nominal: usize,
    batch: usize,
    read_rate: f64,
) -> Result<(), CudaError> {
    let mut random = Random::new(5);
    let contexts: Vec<usize> =
        (0..batch).map(|_| random.between(nominal * 9 / 10, nominal * 11 / 10)).collect();
    let mut pages = random.shuffled(executor.spec().pages as usize);
    let tables: Vec<Vec<u32>> = contexts
        .iter()
        .map(|context| {
            let count = (context + STEPS + WARM_UP + 2).div_ceil(PAGE_SIZE as usize).min(pages.len());
            pages.split_off(pages.len() - count)
        })
        .collect();
    if tables
        .iter()
        .zip(&contexts)
        .any(|(table, context)| table.len() * (PAGE_SIZE as usize) < context + STEPS)
    {
        println!("{name:<12} {nominal} x {batch}: the pool has {} pages", executor.spec().pages);
        return Ok(());
    }
    let slot = |index: usize| SlotId(index as u32);
    let (mut device, mut wall, mut open) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Instant::now();
    for step in 0..STEPS + WARM_UP {
        let mut work = Batch { step: StepId(step as u64 + 1), ..Batch::default() };
        for (index, context) in contexts.iter().enumerate() {
            if step == 0 {
                work.opens.push(OpenSlot {
                    slot: slot(index),
                    params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                    choice: 0,
                    prompt: Vec::new(),
                    output: Vec::new(),
                });
            }
            let first = work.pages.len() as u32;
            work.pages.extend(&tables[index]);
            work.tokens.push(if step == 0 { index as u32 } else { PLACEHOLDER });
            work.sequences.push(SequenceStep {
                slot: slot(index),
                tokens: index as u32..index as u32 + 1,
                start: (context + step - 1) as u32,
                pages: first..work.pages.len() as u32,
                sample: true,
                score: None,
            });
        }
        open.push(executor.submit(&work).map_err(lost)?);
        if open.len() == 2 {
            let outputs = executor.collect(open.remove(0)).map_err(lost)?;
            device.push(outputs.elapsed.as_secs_f64());
            wall.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    }
    for ticket in open {
        executor.collect(ticket).map_err(lost)?;
    }
    let close = Batch { step: StepId(1000), closes: (0..batch).map(slot).collect(), ..Batch::default() };
    let ticket = executor.submit(&close).map_err(lost)?;
    executor.collect(ticket).map_err(lost)?;
    let token_bytes = executor.spec().kv.page_bytes() / PAGE_SIZE as usize;
    let kv: usize = contexts.iter().sum::<usize>() * token_bytes;
    let floor = (executor.weight_bytes_per_step() as f64 + kv as f64) / read_rate;
    let (device, wall) = (median(&mut device[WARM_UP..]), median(&mut wall[WARM_UP..]));
    println!(
        "{name:<14}{:<16}{:<24}{batch:>6}{:>10.3}{:>10.3}{:>9.3}{:>9.1}",
        format!("{mode:?}"),
        format!("decode, context {nominal}"),
        device * 1e3,
        wall * 1e3,
        floor * 1e3,
        floor / wall * 100.0
    );
    Ok(())
}

fn prefill(executor: &mut CudaExecutor, name: &str, mode: GemmMode, tokens: usize) -> Result<(), CudaError> {
    let (mut device, mut wall) = (Vec::new(), Vec::new());
    for step in 0..4u64 {
        let pages = (tokens as u32).div_ceil(PAGE_SIZE);
        let work = Batch {
            step: StepId(step + 1),
            closes: if step > 0 { vec![SlotId(0)] } else { Vec::new() },
            opens: vec![OpenSlot {
                slot: SlotId(0),
                params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                choice: 0,
                prompt: Vec::new(),
                output: Vec::new(),
            }],
            sequences: vec![SequenceStep {
                slot: SlotId(0),
                tokens: 0..tokens as u32,
                start: 0,
                pages: 0..pages,
                sample: true,
                score: None,
            }],
            tokens: (0..tokens as u32).map(|i| (i * 7919 + step as u32) % 150_000).collect(),
            pages: Random::new(step).shuffled(pages as usize),
            ..Batch::default()
        };
        let begin = Instant::now();
        let ticket = executor.submit(&work).map_err(lost)?;
        device.push(executor.collect(ticket).map_err(lost)?.elapsed.as_secs_f64());
        wall.push(begin.elapsed().as_secs_f64());
    }
    let close = Batch { step: StepId(1000), closes: vec![SlotId(0)], ..Batch::default() };
    let ticket = executor.submit(&close).map_err(lost)?;
    executor.collect(ticket).map_err(lost)?;
    println!(
        "{name:<14}{:<16}{:<24}{:>6}{:>10.3}{:>10.3}",
        format!("{mode:?}"),
        format!("prefill, {tokens} tokens"),
        1,
        median(&mut device[1..]) * 1e3,
        median(&mut wall[1..]) * 1e3
    );
    Ok(())
}

/// Texts that both implementations score.
const TEXTS: [usize; 4] = [5, 64, 300, 700];

fn text(number: usize, vocab: u32) -> Vec<u32> {
    let mut random = Random::new(number as u64 + 11);
    (0..TEXTS[number]).map(|_| random.below(vocab as usize) as u32).collect()
}

/// With GPU_COMPARE naming an empty folder: writes a random checkpoint of Qwen3-0.6B and the texts there, in FP8 if
/// GPU_COMPARE_FP8 is set. With a reference in it: compares log probabilities, position by position.
pub fn compare(context: Context) -> Result<(), String> {
    drop(context);
    let folder = PathBuf::from(std::env::var_os("GPU_COMPARE").ok_or("GPU_COMPARE names no folder")?);
    let spec = DecoderSpec { layers: 8, ..synthetic::qwen3_0_6b_spec() };
    let reference = folder.join("reference.txt");
    let text_error = |error: std::io::Error| error.to_string();
    if !reference.exists() {
        let fp8 = std::env::var_os("GPU_COMPARE_FP8").is_some();
        let dtype = if fp8 { DType::F8E4M3 } else { DType::BF16 };
        synthetic::write_random_checkpoint(&folder, &spec, dtype, 3).map_err(|error| error.to_string())?;
        let mut lines = String::new();
        for number in 0..TEXTS.len() {
            let ids: Vec<String> = text(number, spec.vocab_size).iter().map(u32::to_string).collect();
            writeln!(lines, "{}", ids.join(" ")).map_err(|error| error.to_string())?;
        }
        return std::fs::write(folder.join("texts.txt"), lines).map_err(text_error);
    }
    let model = Model::open(&folder).map_err(|error| error.to_string())?;
    let mut executor = CudaExecutor::new(&model, &config(4, 1024, KvBudget::Pages(256)), &mut |_| ())
        .map_err(|error| error.to_string())?;
    let lines = std::fs::read_to_string(reference).map_err(text_error)?;
    let mut rows = lines.lines().map(|line| {
        line.split_whitespace().map(|number| number.parse::<f64>().unwrap_or(f64::NAN)).collect::<Vec<f64>>()
    });
    let (mut ours, mut theirs, mut count, mut flips, mut their_flips) = (0.0, 0.0, 0, 0, 0);
    for number in 0..TEXTS.len() {
        let scored = score(&mut executor, &text(number, spec.vocab_size)).map_err(|error| error.0)?;
        for (logprob, best) in scored {
            // log probability in f32 and in bf16, most likely token in f32 and in bf16
            let row = rows.next().ok_or("the reference ends early")?;
            ours += (f64::from(logprob) - row[0]).powi(2);
            theirs += (row[1] - row[0]).powi(2);
            flips += usize::from(f64::from(best) != row[2]);
            their_flips += usize::from(row[3] != row[2]);
            count += 1;
        }
    }
    let (ours, theirs) = ((ours / f64::from(count)).sqrt(), (theirs / f64::from(count)).sqrt());
    println!("{count} positions against transformers in f32: rms difference of log probabilities {ours:.4}");
    println!("(transformers in bf16: {theirs:.4}); other most likely token: {flips} (bf16: {their_flips})");
    if ours <= 1.25 * theirs { Ok(()) } else { Err("further from f32 than bf16 has to be".into()) }
}
