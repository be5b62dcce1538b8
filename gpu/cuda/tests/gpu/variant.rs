//! Batch-variant kernels: a row's bits depend on what is beside it, its distance from f32 does not.

use std::collections::BTreeMap;

use cuda::{CudaConfig, CudaExecutor, KvBudget, KvFormat, WeightFormat, ops::GemmMode};
use models::{DType, DecoderSpec, Logprobs, Model, synthetic};

use crate::{
    company::{Request, Run, Text, random_request},
    harness::{Case, Context, Failure, Outcome, ensure},
    lone::score_from,
    random::Random,
    scheduled::{self, Served},
    setup::{config, failure, random_spec, wide_spec},
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "variant: mixed steps are as near to f32 as the default", run: mixed },
        Case { name: "variant: the scheduler's are as near to f32 as the default", run: scheduled },
    ]
}

const SLOTS: u32 = 24;
const REQUESTS: usize = 120;
/// What `gpu compare` lets one implementation in bf16 be further from f32 than another.
const BF16_SLACK: f64 = 1.25;
/// With weights in FP8 rows may become FP8 as well, which costs as much again.
const FP8_SLACK: f64 = 2.0;

/// A prompt, and what came of it.
type Answer = (Vec<u32>, Text);

/// In random company.
fn mixed(context: &Context, random: &mut Random) -> Outcome {
    near(context, random, 24 * SLOTS, |executor, count, random| {
        let mut all: Vec<Request> = (0..count).map(|_| random_request(random)).collect();
        all.iter_mut().for_each(report);
        let texts = Run::new(executor).all(&all, random, SLOTS as usize)?;
        Ok(all.into_iter().map(|request| request.prompt).zip(texts).collect())
    })
}

/// In steps that the scheduler plans, of fewer pages than they all need.
fn scheduled(context: &Context, random: &mut Random) -> Outcome {
    near(context, random, 60, |executor, count, random| {
        let mut asked = scheduled::requests(count, random);
        asked.iter_mut().for_each(|(request, _)| report(request));
        let mut served = Served::new(executor);
        let runs = served.serve(&asked, random)?;
        let prompts = asked.into_iter().map(|(request, _)| request.prompt);
        let prompts: BTreeMap<_, _> = runs.into_iter().zip(prompts).collect();
        Ok(served.texts.into_iter().map(|((run, _), text)| (prompts[&run].clone(), text)).collect())
    })
}

fn report(request: &mut Request) {
    request.params.logprobs = Logprobs::Top(0);
}

/// Fails unless the log probabilities of what an executor makes of random requests are about as near to those of f32 as
/// the default's, of the same texts alone.
fn near(
    context: &Context,
    random: &mut Random,
    pages: u32,
    make: fn(&mut CudaExecutor, usize, &mut Random) -> Result<Vec<Answer>, Failure>,
) -> Outcome {
    // rows become FP8 by blocks of 128 elements
    let blocks = DecoderSpec { hidden_size: 256, intermediate_size: 384, ..random_spec(128, 4, 1, None) };
    let kinds = [
        (random_spec(64, 6, 2, None), KvFormat::Bf16, WeightFormat::AsStored, BF16_SLACK),
        (random_spec(128, 4, 1, Some(100)), KvFormat::Fp8E4m3, WeightFormat::AsStored, BF16_SLACK),
        (wide_spec(), KvFormat::Bf16, WeightFormat::AsStored, BF16_SLACK),
        (blocks, KvFormat::Bf16, WeightFormat::Fp8, FP8_SLACK),
    ];
    let (most, count) = if context.light { (1, 4) } else { (kinds.len(), REQUESTS) };
    let folder = tempfile::tempdir().map_err(failure)?;
    let mut found = Vec::new();
    for (spec, kv_format, weights, slack) in kinds.into_iter().take(most) {
        synthetic::write_random_checkpoint(folder.path(), &spec, DType::BF16, random.word())
            .map_err(failure)?;
        let model = Model::open(folder.path()).map_err(failure)?;
        let default = CudaConfig { kv_format, weights, ..config(SLOTS, 512, KvBudget::Pages(pages)) };
        let f32 = CudaConfig { weights: WeightFormat::Float32, ..default.clone() };
        let variant = CudaConfig { gemm: GemmMode::BatchVariant, ..default.clone() };
        let engine = |config| CudaExecutor::new(&model, &config, &mut |_| ());
        let answers = make(&mut engine(variant)?, count, random)?;
        let [variant, default] = distances(&answers, &mut engine(default)?, &mut engine(f32)?)?;
        // few texts say little
        ensure(context.light || variant <= slack * default, || {
            format!("width {}: {variant:.3} from f32 on average, the default {default:.3}", spec.hidden_size)
        })?;
        found.push(format!("{variant:.3} ({default:.3})"));
    }
    Ok(format!("from f32 on average (the default): {}", found.join(", ")))
}

/// How far log probabilities of texts are from those of f32 on average, and how far the default's are.
fn distances(
    answers: &[Answer],
    default: &mut CudaExecutor,
    f32: &mut CudaExecutor,
) -> Result<[f64; 2], Failure> {
    let (mut sums, mut count) = ([0.0; 2], 0);
    for (prompt, text) in answers.iter().filter(|(_, text)| !text.is_empty()) {
        let outputs = text.iter().map(|&(token, _)| token);
        let (from, tokens) =
            (prompt.len() as u32 - 1, prompt.iter().copied().chain(outputs).collect::<Vec<_>>());
        let (default, f32) = (score_from(default, &tokens, from)?, score_from(f32, &tokens, from)?);
        for ((&(_, found), (default, _)), (f32, _)) in text.iter().zip(default).zip(f32) {
            let found = found.ok_or_else(|| failure("a token without its log probability"))?;
            for (sum, found) in sums.iter_mut().zip([found, default]) {
                *sum += f64::from((found - f32).abs());
            }
            count += 1;
        }
    }
    Ok(sums.map(|sum| sum / f64::from(count)))
}
