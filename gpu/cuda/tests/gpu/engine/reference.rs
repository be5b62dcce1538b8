//! A model through the executor, beside what `scripts/gpu-reference` computed for it.

use std::{fmt::Write, path::PathBuf};

use cuda::{CudaConfig, CudaExecutor, KvBudget, KvFormat};
use models::{DType, DecoderSpec, Model, synthetic};

use crate::{harness::Context, lone::score, random::Random, setup::config};

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
    let lines = std::fs::read_to_string(reference).map_err(text_error)?;
    let rows: Vec<Row> = lines.lines().map(Row::parse).collect();
    KvFormat::ALL.into_iter().try_for_each(|kv_format| compare_rows(&model, &rows, kv_format))
}

/// What transformers computed for a position, in f32 and in bf16.
struct Row {
    logprobs: [f64; 2],
    best: [f64; 2],
}

impl Row {
    fn parse(line: &str) -> Self {
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap_or(f64::NAN));
        let mut pair = || [(); 2].map(|()| numbers.next().unwrap_or(f64::NAN));
        Self { logprobs: pair(), best: pair() }
    }
}

/// With keys and values in bf16 the executor may be a little further from f32 than transformers in bf16. In FP8 they are off
/// by a sixteenth at most, which eight random layers blow up: half the variance of log probabilities must be explained.
fn compare_rows(model: &Model, rows: &[Row], kv_format: KvFormat) -> Result<(), String> {
    const SLACK: f64 = 1.25;
    let config = CudaConfig { kv_format, ..config(4, 1024, KvBudget::Pages(256)) };
    let mut executor = CudaExecutor::new(model, &config, &mut |_| ()).map_err(|error| error.to_string())?;
    let mut scored = Vec::new();
    for number in 0..TEXTS.len() {
        let text = text(number, model.spec.vocab_size);
        scored.extend(score(&mut executor, &text).map_err(|error| error.0)?);
    }
    if scored.len() != rows.len() {
        return Err(format!("{} positions, {} in the reference", scored.len(), rows.len()));
    }
    let pairs = || scored.iter().zip(rows);
    let rms = |differences: &mut dyn Iterator<Item = f64>| {
        (differences.map(|difference| difference.powi(2)).sum::<f64>() / rows.len() as f64).sqrt()
    };
    let ours = rms(&mut pairs().map(|(&(logprob, _), row)| f64::from(logprob) - row.logprobs[0]));
    let theirs = rms(&mut rows.iter().map(|row| row.logprobs[1] - row.logprobs[0]));
    let mean = rows.iter().map(|row| row.logprobs[0]).sum::<f64>() / rows.len() as f64;
    let spread = rms(&mut rows.iter().map(|row| row.logprobs[0] - mean));
    let flips = pairs().filter(|(scored, row)| f64::from(scored.1) != row.best[0]).count();
    let their_flips = rows.iter().filter(|row| row.best[1] != row.best[0]).count();
    println!(
        "{} positions, keys and values in {}, against transformers in f32: rms difference of log probabilities {ours:.4}",
        rows.len(),
        kv_format.name()
    );
    println!(
        "(transformers in bf16: {theirs:.4}; they spread by {spread:.2}); other most likely token: {flips} (bf16: {their_flips})"
    );
    match kv_format {
        KvFormat::Bf16 if ours <= SLACK * theirs => Ok(()),
        KvFormat::Bf16 => Err("further from f32 than bf16 has to be".into()),
        KvFormat::Fp8E4m3 if ours.powi(2) <= spread.powi(2) / 2.0 => Ok(()),
        KvFormat::Fp8E4m3 => Err("less than half of the variance is explained".into()),
    }
}
