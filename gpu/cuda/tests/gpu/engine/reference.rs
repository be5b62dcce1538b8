//! A model through the executor, beside what `scripts/gpu-reference` computed for it.

use std::{fmt::Write, path::PathBuf};

use cuda::{CudaExecutor, KvBudget};
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
