//! Whole models: against reference logits, and against themselves in every other way to batch them.

use std::path::Path;

use cpu::{CpuConfig, CpuExecutor, KvDtype, Precision};
use cuda::{CudaConfig, CudaExecutor, KvBudget, KvFormat, WeightFormat, ops::GemmMode};
use models::{
    Batch, DType, DecoderSpec, Executor, Logprobs, Model, OpenSlot, PLACEHOLDER, SamplingParams, Score,
    SequenceStep, SlotId, StepId,
    fixtures::{self, Checkpoint},
    synthetic,
};

use crate::{
    checkpoint::write_rounded,
    company::{Request, Run, random_request},
    compare::same_bits,
    harness::{Case, Context, Failure, Outcome, ensure},
    lone::{self, score, score_from},
    random::Random,
    setup::{PAGE_SIZE, config, failure, log_softmax, random_spec},
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "executor: reference checkpoints", run: references },
        Case { name: "executor: reference checkpoints in f32", run: references_in_f32 },
        Case { name: "executor: mixed steps give the tokens of lone runs", run: mixed },
        Case { name: "executor: a last layer of few rows gives the bits of all", run: last_layer },
        Case { name: "executor: vocabularies of any size", run: vocabularies },
        Case { name: "executor: weights in f16 are rounded to bf16", run: f16_weights },
        Case { name: "executor: histories of many sequences that open at once", run: histories },
        Case { name: "executor: refused batches change nothing", run: refusals },
        Case { name: "executor: as many stop ids as fit are masked", run: masked_stops },
        Case { name: "executor: pages travel between engines", run: pages },
    ]
}

/// bf16 weights and activations against f32 references: log probabilities within bf16's reach, and the same most likely
/// token wherever the reference's lead is clear. Keys and values in FP8 keep 3 bits behind the first where bf16 keeps 7: they
/// may cost 16 times as much.
fn references(_: &Context, _: &mut Random) -> Outcome {
    const CLEAR: f64 = 1.0;
    const MEAN_BOUND: f64 = 0.08;
    const FP8_COARSER: f64 = 16.0;
    let plain = config(4, 256, KvBudget::Pages(64));
    let variant = CudaConfig { gemm: GemmMode::BatchVariant, ..plain.clone() };
    let fp8 = CudaConfig { kv_format: KvFormat::Fp8E4m3, ..plain.clone() };
    let mut report = Vec::new();
    for (kind, config, coarser) in
        [("bf16", plain, 1.0), ("batch-variant", variant, 1.0), ("fp8 keys and values", fp8, FP8_COARSER)]
    {
        let (mut worst, mut flips) = (0.0f64, 0);
        for (name, checkpoint) in fixtures::checkpoints() {
            let model = Model::open(&checkpoint.path).map_err(failure)?;
            let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
            let Distance { mean, lead, others } = Distance::of(&mut executor, &checkpoint)?;
            ensure(lead < CLEAR * coarser, || format!("{name}, {kind}: a token {lead:.2} behind the best"))?;
            ensure(mean < MEAN_BOUND * coarser, || {
                format!("{name}, {kind}: log probabilities differ by {mean:.3} on average")
            })?;
            worst = worst.max(mean);
            flips += others;
        }
        report.push(format!("{kind}: {worst:.3} at most, {flips} other tokens"));
    }
    Ok(report.join("; "))
}

/// From a checkpoint's reference.
struct Distance {
    /// Of log probabilities.
    mean: f64,
    /// The longest lead of the reference's most likely token over ours.
    lead: f64,
    /// Positions where they differ.
    others: usize,
}

impl Distance {
    fn of(executor: &mut CudaExecutor, checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let (mut sum, mut count, mut longest, mut others) = (0.0, 0, 0.0f64, 0);
        for case in &checkpoint.cases {
            let tokens = case.tokens();
            for (position, (logprob, best)) in score(executor, &tokens)?.into_iter().enumerate() {
                let reference = log_softmax(case.logits(position));
                sum += (f64::from(logprob) - reference[tokens[position + 1] as usize]).abs();
                count += 1;
                let top = reference.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lead = top - reference[best as usize];
                others += usize::from(lead > 0.0);
                longest = longest.max(lead);
            }
        }
        Ok(Self { mean: sum / f64::from(count), lead: longest, others })
    }
}

/// f32 throughout, against the f32 logits of transformers: in one step, and token after token.
fn references_in_f32(context: &Context, _: &mut Random) -> Outcome {
    const BOUND: f32 = 5e-5;
    let mut worst = 0.0f32;
    let most = if context.light { 1 } else { usize::MAX };
    for (name, checkpoint) in fixtures::checkpoints().take(most) {
        let model = Model::open(&checkpoint.path).map_err(failure)?;
        let config = CudaConfig { weights: WeightFormat::Float32, ..config(4, 256, KvBudget::Pages(64)) };
        let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
        for case in &checkpoint.cases {
            let tokens = case.tokens();
            let vocab = model.spec.vocab_size as usize;
            for chunk in [tokens.len(), 7, 1].into_iter().take(if context.light { 2 } else { 3 }) {
                for first in (0..tokens.len()).step_by(chunk) {
                    let part = first..tokens.len().min(first + chunk);
                    let score = Score { from: 0, next: Some(0) };
                    let step = lone::step(&tokens, part.clone(), lone::pages(&tokens), score);
                    lone::scored(&mut executor, step, 1)?;
                    let logits = executor.logits(part.len())?;
                    for (position, found) in part.zip(logits.chunks_exact(vocab)) {
                        let expected = case.logits(position);
                        let pairs = found.iter().zip(expected);
                        let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / case.max_logit();
                        ensure(error < BOUND, || {
                            format!("{name}: {error:.1e} at {position}, steps of {chunk}")
                        })?;
                        worst = worst.max(error);
                    }
                }
            }
        }
    }
    Ok(format!("error {worst:.1e} of the largest logit"))
}

/// Requests run in random company: chunks of random sizes mixed with decodes, two steps in flight, tokens fed back on
/// the device, pages dealt at random; each must give what it gives alone.
fn mixed(context: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-test-{}", std::process::id()));
    let (mut steps, mut requests) = (0, 0);
    let (stored, fp8, f32) = (WeightFormat::AsStored, WeightFormat::Fp8, WeightFormat::Float32);
    for (head_dim, heads, kv_heads, window, kv_format, weights) in [
        (64, 6, 2, None, KvFormat::Bf16, stored),
        (128, 4, 1, None, KvFormat::Bf16, stored),
        (64, 3, 3, Some(50), KvFormat::Bf16, stored),
        (128, 4, 2, None, KvFormat::Fp8E4m3, stored),
        (64, 6, 3, Some(70), KvFormat::Fp8E4m3, stored),
        (128, 4, 1, None, KvFormat::Bf16, fp8),
        (64, 6, 2, Some(50), KvFormat::Fp8E4m3, fp8),
        (128, 4, 2, Some(60), KvFormat::Bf16, f32),
    ] {
        let spec = random_spec(head_dim, heads, kv_heads, window);
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let config = CudaConfig { kv_format, weights, ..config(24, 256, KvBudget::Pages(24 * 24)) };
        let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
        let count = if context.light { 4 } else { 60 };
        let all: Vec<Request> = (0..count).map(|_| random_request(random)).collect();
        let mut together = Run::new(&mut executor);
        let texts = together.all(&all, random, 24)?;
        steps += together.step;
        for (request, text) in all.iter().zip(&texts).take(if context.light { 2 } else { 25 }) {
            let alone = Run::new(&mut executor).all(std::slice::from_ref(request), random, 1)?;
            ensure(&alone[0] == text, || {
                let at = alone[0].iter().zip(text).position(|(a, b)| a != b);
                format!("prompt of {} differs from token {at:?} on", request.prompt.len())
            })?;
            requests += 1;
        }
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    Ok(format!("{steps} mixed steps, {requests} requests bit-equal alone"))
}

/// Where few logits are asked for, the last layer goes on with their rows alone.
fn last_layer(_: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-last-{}", std::process::id()));
    let mut compared = 0;
    for (head_dim, heads, kv_heads, window) in [(64, 6, 2, None), (128, 4, 2, Some(100))] {
        let spec = random_spec(head_dim, heads, kv_heads, window);
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let mut executor = CudaExecutor::new(&model, &config(2, 512, KvBudget::Pages(64)), &mut |_| ())?;
        let tokens: Vec<u32> = (0..450).map(|_| random.below(1000) as u32).collect();
        let all = score(&mut executor, &tokens)?;
        for from in [200, 383, 384, 448] {
            let few = score_from(&mut executor, &tokens, from)?;
            let same = few
                .iter()
                .zip(&all[from as usize..])
                .all(|(a, b)| a.0.to_bits() == b.0.to_bits() && a.1 == b.1);
            ensure(same && few.len() == all.len() - from as usize, || format!("from {from} on they differ"))?;
            compared += few.len();
        }
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    Ok(format!("{compared} positions bit-equal"))
}

/// Vocabularies whose products are padded: the padding is neither weighed nor drawn.
fn vocabularies(_: &Context, random: &mut Random) -> Outcome {
    const F32_BOUND: f64 = 1e-3;
    const SLOTS: u32 = 8;
    let folder = std::env::temp_dir().join(format!("stator-gpu-vocabularies-{}", std::process::id()));
    let mut draws = 0;
    for (vocab_size, tied_embeddings) in [(1003, true), (1001, false), (999, true)] {
        let spec = DecoderSpec { vocab_size, tied_embeddings, ..random_spec(64, 6, 2, None) };
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let tokens: Vec<u32> = (0..100).map(|_| random.below(vocab_size as usize) as u32).collect();
        let kv = cpu::KvBudget::Pages(16);
        let cpu = CpuConfig { kv_dtype: KvDtype::F32, kv, precision: Precision::F32, ..CpuConfig::default() };
        let mut cpu = CpuExecutor::new(&model, &cpu, &mut |_| ()).map_err(failure)?;
        let reference = score(&mut cpu, &tokens)?;
        for weights in [WeightFormat::Float32, WeightFormat::AsStored] {
            let config = CudaConfig { weights, ..config(SLOTS, 256, KvBudget::Pages(96)) };
            let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
            let found = score(&mut executor, &tokens)?;
            let logits = executor.logits(found.len())?;
            for (position, logits) in logits.chunks_exact(vocab_size as usize).enumerate() {
                let expected = log_softmax(logits)[tokens[position + 1] as usize];
                let off = (f64::from(found[position].0) - expected).abs();
                ensure(off < 1e-4, || {
                    format!("{vocab_size}, {weights:?}: {off:.1e} off its own logits at {position}")
                })?;
            }
            let off = found.iter().zip(&reference).map(|(a, b)| f64::from((a.0 - b.0).abs())).sum::<f64>()
                / found.len() as f64;
            ensure(weights == WeightFormat::AsStored || off < F32_BOUND, || {
                format!("{vocab_size}: {off:.1e} off the CPU's")
            })?;
            let requests: Vec<Request> = (0..SLOTS)
                .map(|_| {
                    // all tokens are about as likely
                    let params = SamplingParams {
                        temperature: 1e4,
                        frequency_penalty: 0.1,
                        seed: random.word(),
                        ..SamplingParams::default()
                    };
                    Request { prompt: vec![1], params, choice: 0, tokens: 150 }
                })
                .collect();
            for text in Run::new(&mut executor).all(&requests, random, SLOTS as usize)? {
                let beyond = text.iter().find(|&&(token, _)| token >= vocab_size);
                ensure(beyond.is_none(), || format!("{beyond:?} of {vocab_size} tokens was drawn"))?;
                draws += text.len();
            }
        }
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    Ok(format!("{draws} draws within the vocabulary"))
}

/// A checkpoint in f16 gives the bits of one whose matrices were rounded before; vectors are f32 on the device.
fn f16_weights(_: &Context, random: &mut Random) -> Outcome {
    let folder = |name| std::env::temp_dir().join(format!("stator-gpu-f16-{name}-{}", std::process::id()));
    let (stored, rounded) = (folder("stored"), folder("rounded"));
    let mut positions = 0;
    // the second has heads that the kernels widen
    for (head_dim, heads, kv_heads) in [(64, 6, 2), (48, 4, 2)] {
        let spec = random_spec(head_dim, heads, kv_heads, None);
        synthetic::write_random_checkpoint(&stored, &spec, DType::F16, random.word()).map_err(failure)?;
        write_rounded(&stored, &rounded)?;
        let tokens: Vec<u32> = (0..300).map(|_| random.below(1000) as u32).collect();
        let found = [&stored, &rounded].map(|folder| -> Result<Vec<f32>, Failure> {
            let model = Model::open(folder).map_err(failure)?;
            let mut executor = CudaExecutor::new(&model, &config(1, 512, KvBudget::Pages(32)), &mut |_| ())?;
            Ok(score(&mut executor, &tokens)?.into_iter().map(|(logprob, _)| logprob).collect())
        });
        let [stored, rounded] = found;
        let (stored, rounded) = (stored?, rounded?);
        same_bits(&format!("heads of {head_dim}"), &stored, &rounded)?;
        positions += stored.len();
    }
    for folder in [stored, rounded] {
        std::fs::remove_dir_all(&folder).map_err(failure)?;
    }
    Ok(format!("{positions} positions bit-equal"))
}

/// Sequences that go on from an output, with penalties: more of them in one step than its page-locked memory has room for.
fn histories(_: &Context, random: &mut Random) -> Outcome {
    const SLOTS: u32 = 40;
    let folder = std::env::temp_dir().join(format!("stator-gpu-histories-{}", std::process::id()));
    let spec = random_spec(64, 6, 2, None);
    synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
    let model = Model::open(&folder).map_err(failure)?;
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    let mut executor = CudaExecutor::new(&model, &config(SLOTS, 64, KvBudget::Pages(SLOTS)), &mut |_| ())?;
    let opens: Vec<OpenSlot> = (0..SLOTS)
        .map(|slot| OpenSlot {
            slot: SlotId(slot),
            params: SamplingParams {
                temperature: 0.0,
                frequency_penalty: 2.0,
                repetition_penalty: 1.5,
                logit_bias: (0..1000).map(|token| (token, random.float(3.0))).collect(),
                logprobs: Logprobs::Top(0),
                ..SamplingParams::default()
            },
            choice: 0,
            prompt: (0..20).map(|_| random.below(1000) as u32).collect(),
            output: (0..200).map(|_| random.below(1000) as u32).collect(),
        })
        .collect();
    let mut step = 0;
    let mut draw = |opens: &[OpenSlot]| -> Result<Vec<(u32, Option<f32>)>, Failure> {
        step += 1;
        let sequence = |(at, open): (u32, &OpenSlot)| SequenceStep {
            slot: open.slot,
            tokens: at..at + 1,
            start: 0,
            pages: at..at + 1,
            sample: true,
            score: None,
        };
        let batch = Batch {
            step: StepId(step),
            closes: if step > 1 { opens.iter().map(|open| open.slot).collect() } else { Vec::new() },
            opens: opens.to_vec(),
            sequences: (0..).zip(opens).map(sequence).collect(),
            tokens: opens.iter().map(|open| open.prompt[0]).collect(),
            pages: opens.iter().map(|open| open.slot.0).collect(),
            ..Batch::default()
        };
        let outputs = lone::run(&mut executor, &batch)?;
        Ok(outputs.sampled.iter().map(|sampled| (sampled.token, sampled.logprob)).collect())
    };
    let together = draw(&opens)?;
    for (open, together) in opens.iter().zip(&together) {
        let alone = draw(std::slice::from_ref(open))?;
        ensure(alone[0] == *together, || format!("slot {}: {together:?}, alone {alone:?}", open.slot.0))?;
    }
    Ok(format!("{SLOTS} sequences draw what they draw alone"))
}

fn refusals(_: &Context, _: &mut Random) -> Outcome {
    let checkpoint = fixtures::checkpoint("qwen3");
    let model = Model::open(Path::new(&checkpoint.path)).map_err(failure)?;
    let mut executor = CudaExecutor::new(&model, &config(2, 32, KvBudget::Pages(8)), &mut |_| ())?;
    let open = |slot| OpenSlot {
        slot: SlotId(slot),
        params: SamplingParams::default(),
        choice: 0,
        prompt: Vec::new(),
        output: Vec::new(),
    };
    let good = Batch {
        step: StepId(1),
        opens: vec![open(0)],
        sequences: vec![SequenceStep {
            slot: SlotId(0),
            tokens: 0..2,
            start: 0,
            pages: 0..1,
            sample: true,
            score: None,
        }],
        tokens: vec![1, 2],
        pages: vec![3],
        ..Batch::default()
    };
    let broken: [fn(&mut Batch); 8] = [
        |batch| batch.opens[0].params.logit_bias = vec![(1, 1.0); CudaExecutor::SAMPLING.logit_bias + 1],
        |batch| batch.opens.clear(),
        |batch| batch.tokens[1] = 99_999,
        |batch| batch.tokens[1] = PLACEHOLDER,
        |batch| batch.pages[0] = 8,
        |batch| batch.pages.clear(),
        |batch| batch.closes.push(SlotId(1)),
        |batch| batch.sequences[0].tokens = 0..3,
    ];
    for (number, spoil) in broken.iter().enumerate() {
        let mut batch = good.clone();
        spoil(&mut batch);
        let refused = matches!(executor.submit(&batch), Err(models::ExecutorError::Batch(_)));
        ensure(refused, || format!("broken batch {number} was taken"))?;
    }
    let outputs = lone::run(&mut executor, &good)?;
    ensure(outputs.sampled.len() == 1, || "the good batch runs after the broken ones".into())?;
    Ok(format!("{} refused", broken.len()))
}

/// Stop ids cannot be drawn before `min_tokens`, and are as good as any token after it.
fn masked_stops(_: &Context, random: &mut Random) -> Outcome {
    const MIN_TOKENS: usize = 3;
    let folder = std::env::temp_dir().join(format!("stator-gpu-stops-{}", std::process::id()));
    let spec = random_spec(64, 6, 2, None);
    synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
    let model = Model::open(&folder).map_err(failure)?;
    let mut executor = CudaExecutor::new(&model, &config(1, 64, KvBudget::Pages(8)), &mut |_| ())?;
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    let mut texts = |min_tokens: usize, stop_ids: &[u32]| -> Result<Vec<u32>, Failure> {
        let params = SamplingParams {
            temperature: 0.0,
            min_tokens: min_tokens as u32,
            stop_ids: stop_ids.to_vec(),
            ..SamplingParams::default()
        };
        let request = Request { prompt: vec![1, 2, 3], params, choice: 0, tokens: 2 * MIN_TOKENS };
        let texts = Run::new(&mut executor).all(&[request], random, 1)?;
        Ok(texts[0].iter().map(|&(token, _)| token).collect())
    };
    let free = texts(0, &[])?;
    let most = CudaExecutor::SAMPLING.masked_stops;
    let others = (0..spec.vocab_size).filter(|id| !free.contains(id));
    let stops: Vec<u32> = others.take(most - free.len()).chain(free.iter().copied()).collect();
    ensure(texts(0, &stops)? == free, || "stop ids that nothing masks change the text".into())?;
    let masked = texts(MIN_TOKENS, &stops)?;
    ensure(masked[..MIN_TOKENS].iter().all(|token| !stops.contains(token)), || format!("{masked:?}"))?;
    Ok(format!("{} stop ids", stops.len()))
}

/// A prompt computed on one engine and continued on another, its pages carried over under other numbers.
fn pages(_: &Context, random: &mut Random) -> Outcome {
    let positions = KvFormat::ALL.map(|kv_format| pages_in(kv_format, random));
    let positions = positions.into_iter().sum::<Result<usize, Failure>>()?;
    Ok(format!("{positions} positions bit-equal"))
}

fn pages_in(kv_format: KvFormat, random: &mut Random) -> Result<usize, Failure> {
    let checkpoint = fixtures::checkpoint("qwen3");
    let model = Model::open(Path::new(&checkpoint.path)).map_err(failure)?;
    let config = CudaConfig { kv_format, ..config(2, 64, KvBudget::Pages(16)) };
    let engine = || CudaExecutor::new(&model, &config, &mut |_| ()).map_err(failure);
    let (mut here, mut there) = (engine()?, engine()?);
    let vocab = model.spec.vocab_size as usize;
    let prompt: Vec<u32> = (0..50).map(|_| random.below(vocab) as u32).collect();
    let decode = |executor: &mut CudaExecutor, table: &[u32], first: usize| -> Result<Vec<f32>, Failure> {
        let mut logprobs = Vec::new();
        for at in first..prompt.len() {
            let score = Score { from: 0, next: Some(prompt[(at + 1) % prompt.len()]) };
            let mut step = lone::step(&prompt, at..at + 1, table.to_vec(), score);
            step.step = StepId(at as u64 + 1);
            if at == first {
                step = lone::opening(step, 0);
            }
            logprobs.push(lone::run(executor, &step)?.scored[0].tokens[0].0);
        }
        Ok(logprobs)
    };
    let expected = decode(&mut here, &[3, 9, 4, 0], 0)?;
    let carried = [7u32, 1, 12, 5];
    let mut bytes = vec![0; here.spec().kv.page_bytes()];
    // one more than the first 40 positions need, and more than may be on their way at once
    for (from, to) in [3, 9, 4, 0, 3].into_iter().zip([7, 1, 12, 6, 7]) {
        here.read_page(from, &mut bytes).map_err(failure)?;
        there.write_page(to, &bytes).map_err(failure)?;
    }
    let continued = decode(&mut there, &carried, 40)?;
    let elements = 2 * model.spec.layers * model.spec.kv_heads * PAGE_SIZE * 64;
    let bytes_each = bytes.len() / elements as usize;
    ensure(bytes_each == if kv_format == KvFormat::Bf16 { 2 } else { 1 }, || {
        format!("{bytes_each} bytes an element")
    })?;
    same_bits("continued elsewhere", &continued, &expected[40..])?;
    let refused = |outcome| matches!(outcome, Err(models::ExecutorError::Batch(_)));
    ensure(refused(here.read_page(16, &mut bytes)), || "a page that is not there was read".into())?;
    ensure(refused(here.write_page(0, &bytes[1..])), || "a part of a page was written".into())?;
    Ok(continued.len())
}
