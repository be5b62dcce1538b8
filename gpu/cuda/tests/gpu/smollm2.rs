//! A real model from its GGUF file, in bf16 and in f32, against the distributions that transformers computed from the same file in
//! f32.

use cuda::{CudaConfig, CudaExecutor, KvBudget, WeightFormat, ops::GemmMode};
use models::{
    Model, Score, StepId,
    fixtures::{self, TeacherForced},
};

use crate::{
    harness::Context,
    lone,
    setup::{PAGE_SIZE, config},
};

/// The same for f32.
const F32_MEAN_BOUND: f64 = 1e-5;
/// Tokens of a step.
const ROWS: usize = 50;
/// Mean divergence in nats that bf16 may cost.
const MEAN_BOUND: f64 = 0.001;
/// Leads of the reference in nats beyond which its best token must be ours.
const CLEAR: f32 = 0.3;

/// Fails if the file is not there: it was asked for.
pub fn run(context: Context) -> Result<(), String> {
    drop(context);
    let path = fixtures::smollm2_file().ok_or("no SmolLM2 file: set STATOR_TEST_MODEL")?;
    let model = Model::open(&path).map_err(|error| error.to_string())?;
    let reference = fixtures::smollm2();
    for gemm in [GemmMode::BatchInvariant, GemmMode::BatchVariant] {
        let config = CudaConfig { gemm, ..config(4, 256, KvBudget::Pages(64)) };
        let mut executor =
            CudaExecutor::new(&model, &config, &mut |_| ()).map_err(|error| error.to_string())?;
        let (mean, flips, clear) = divergence(&mut executor, &reference)?;
        let count = reference.positions.len();
        println!(
            "SmolLM2, {gemm:?}: mean divergence {mean:.6} nats over {count} positions; other best token: {flips}, \
             {clear} of them at a lead of {CLEAR} nats or more"
        );
        if mean > MEAN_BOUND || clear > 0 {
            return Err("further from f32 than bf16 has to be".to_owned());
        }
    }
    let config = CudaConfig { weights: WeightFormat::Float32, ..config(4, 256, KvBudget::Pages(64)) };
    let mut executor = CudaExecutor::new(&model, &config, &mut |_| ()).map_err(|error| error.to_string())?;
    let (mean, flips, _) = divergence(&mut executor, &reference)?;
    println!("SmolLM2, f32: mean divergence {mean:.8} nats; other best token: {flips}");
    if mean > F32_MEAN_BOUND || flips > 0 {
        return Err("f32 is not the reference's".to_owned());
    }
    Ok(())
}

/// Mean divergence, positions with another best token, and those of them with a clear best one.
fn divergence(executor: &mut CudaExecutor, reference: &TeacherForced) -> Result<(f64, usize, usize), String> {
    let (mut total, mut flips, mut clear) = (0.0, 0, 0);
    let chunks = reference.tokens.chunks(ROWS).zip(reference.positions.chunks(ROWS));
    for (number, (tokens, positions)) in chunks.enumerate() {
        let part = number * ROWS..number * ROWS + tokens.len();
        let pages = (0..(part.end as u32).div_ceil(PAGE_SIZE)).collect();
        let mut step = lone::step(&reference.tokens, part, pages, Score { from: 0, next: Some(0) });
        step.step = StepId(number as u64 + 1);
        if number == 0 {
            step = lone::opening(step, 1);
        }
        lone::run(executor, &step).map_err(|error| error.0)?;
        let logits = executor.logits(tokens.len()).map_err(|error| error.to_string())?;
        for (position, logits) in positions.iter().zip(logits.chunks(logits.len() / tokens.len())) {
            total += position.divergence(logits);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
            let flipped = best != position.ids[0] as usize;
            flips += usize::from(flipped);
            clear += usize::from(flipped && position.gap() >= CLEAR);
        }
    }
    Ok((total / reference.positions.len() as f64, flips, clear))
}
