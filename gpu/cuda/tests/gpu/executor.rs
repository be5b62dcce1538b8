//! Whole models: against reference logits, and against themselves in every other way to batch them.

use std::path::Path;

use cuda::{
    CompileMode, CudaConfig, CudaExecutor, DeviceConfig, KvBudget, KvFormat, WeightFormat, ops::GemmMode,
};
use models::{
    Batch, DType, DecoderSpec, Executor, Logprobs, Model, OpenSlot, PLACEHOLDER, RopeScaling, RopeSpec,
    SamplingParams, Score, SequenceStep, SlotId, StepId, Ticket, fixtures, synthetic,
};

use crate::{
    compare::same_bits,
    harness::{Case, Context, Failure, Outcome, cache_dir, ensure},
    random::Random,
};

pub const PAGE_SIZE: u32 = 16;

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "executor: reference checkpoints", run: references },
        Case { name: "executor: reference checkpoints in f32", run: references_in_f32 },
        Case { name: "executor: mixed steps give the tokens of lone runs", run: mixed },
        Case { name: "executor: a last layer of few rows gives the bits of all", run: last_layer },
        Case { name: "executor: refused batches change nothing", run: refusals },
        Case { name: "executor: pages travel between engines", run: pages },
    ]
}

pub fn config(slots: u32, max_batch_tokens: u32, kv: KvBudget) -> CudaConfig {
    CudaConfig {
        device: DeviceConfig {
            ordinal: 0,
            cache_dir: cache_dir(),
            compile: CompileMode::Workers(std::env::current_exe().expect("the path of this test")),
        },
        page_size: PAGE_SIZE,
        kv,
        kv_format: KvFormat::Bf16,
        slots,
        max_batch_tokens,
        context_length: None,
        gemm: GemmMode::BatchInvariant,
        weights: WeightFormat::AsStored,
        persistent: true,
        halves_from: Some(CudaConfig::HALVES_FROM),
        graphs: true,
    }
}

pub fn failure(error: impl ToString) -> Failure {
    Failure(error.to_string())
}

/// Scores every known token of a text in one step, and gives the most likely token at each position.
pub fn score(executor: &mut CudaExecutor, tokens: &[u32]) -> Result<Vec<(f32, u32)>, Failure> {
    score_from(executor, tokens, 0)
}

/// The same for the positions from `from` on.
fn score_from(executor: &mut CudaExecutor, tokens: &[u32], from: u32) -> Result<Vec<(f32, u32)>, Failure> {
    let pages: Vec<u32> = (0..(tokens.len() as u32).div_ceil(PAGE_SIZE)).rev().collect();
    let slot = SlotId(0);
    let batch = Batch {
        step: StepId(1),
        opens: vec![OpenSlot {
            slot,
            params: SamplingParams { logprobs: Logprobs::Top(1), ..SamplingParams::default() },
            choice: 0,
            prompt: Vec::new(),
            output: Vec::new(),
        }],
        sequences: vec![SequenceStep {
            slot,
            tokens: 0..tokens.len() as u32,
            start: 0,
            pages: 0..pages.len() as u32,
            sample: false,
            score: Some(Score { from, next: None }),
        }],
        tokens: tokens.to_vec(),
        pages,
        ..Batch::default()
    };
    let ticket = executor.submit(&batch).map_err(failure)?;
    let outputs = executor.collect(ticket).map_err(failure)?;
    let close = Batch { step: StepId(2), closes: vec![slot], ..Batch::default() };
    let ticket = executor.submit(&close).map_err(failure)?;
    executor.collect(ticket).map_err(failure)?;
    Ok(outputs.scored[0].tokens.iter().map(|(logprob, top)| (*logprob, top[0].token)).collect())
}

pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - maximum).exp()).sum();
    logits.iter().map(|&l| f64::from(l - maximum) - total.ln()).collect()
}

/// bf16 weights and activations against f32 references: log probabilities within bf16's reach, and the same most likely
/// token wherever the reference's lead is clear.
fn references(_: &Context, _: &mut Random) -> Outcome {
    const CLEAR: f64 = 1.0;
    const MEAN_BOUND: f64 = 0.08;
    let mut report = String::new();
    for (name, checkpoint) in fixtures::checkpoints() {
        let model = Model::open(&checkpoint.path).map_err(failure)?;
        let mut executor = CudaExecutor::new(&model, &config(4, 256, KvBudget::Pages(64)), &mut |_| ())?;
        let (mut sum, mut count, mut flips) = (0.0, 0, 0);
        for case in &checkpoint.cases {
            let tokens = case.tokens();
            for (position, (logprob, best)) in score(&mut executor, &tokens)?.into_iter().enumerate() {
                let reference = log_softmax(case.logits(position));
                sum += (f64::from(logprob) - reference[tokens[position + 1] as usize]).abs();
                count += 1;
                let top = reference.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lead = top - reference[best as usize];
                flips += usize::from(lead > 0.0);
                ensure(lead < CLEAR, || format!("{name}: a token {lead:.2} behind the best at {position}"))?;
            }
        }
        let mean = sum / f64::from(count);
        ensure(mean < MEAN_BOUND, || format!("{name}: log probabilities differ by {mean:.3} on average"))?;
        report += &format!("{name} {mean:.3}/{flips} ");
    }
    Ok(report)
}

/// f32 throughout, against the f32 logits of transformers: in one step, and token after token.
fn references_in_f32(_: &Context, _: &mut Random) -> Outcome {
    const BOUND: f32 = 5e-5;
    let mut worst = 0.0f32;
    for (name, checkpoint) in fixtures::checkpoints() {
        let model = Model::open(&checkpoint.path).map_err(failure)?;
        let config = CudaConfig { weights: WeightFormat::Float32, ..config(4, 256, KvBudget::Pages(64)) };
        let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
        for case in &checkpoint.cases {
            let tokens = case.tokens();
            let vocab = model.spec.vocab_size as usize;
            for chunk in [tokens.len(), 7, 1] {
                for first in (0..tokens.len()).step_by(chunk) {
                    let part = first..tokens.len().min(first + chunk);
                    let logits = logits_of(&mut executor, &tokens, part.clone())?;
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

/// Logits after some tokens of a text, those before having been computed.
fn logits_of(
    executor: &mut CudaExecutor,
    tokens: &[u32],
    part: std::ops::Range<usize>,
) -> Result<Vec<f32>, Failure> {
    let slot = SlotId(0);
    let pages: Vec<u32> = (0..(tokens.len() as u32).div_ceil(PAGE_SIZE)).rev().collect();
    let open = OpenSlot {
        slot,
        params: SamplingParams { logprobs: Logprobs::Top(1), ..SamplingParams::default() },
        choice: 0,
        prompt: Vec::new(),
        output: Vec::new(),
    };
    let batch = Batch {
        step: StepId(1),
        closes: if part.start == 0 { Vec::new() } else { vec![slot] },
        opens: vec![open],
        sequences: vec![SequenceStep {
            slot,
            tokens: 0..part.len() as u32,
            start: part.start as u32,
            pages: 0..pages.len() as u32,
            sample: false,
            score: Some(Score { from: 0, next: Some(0) }),
        }],
        tokens: tokens[part.clone()].to_vec(),
        pages,
        ..Batch::default()
    };
    let ticket = executor.submit(&batch).map_err(failure)?;
    executor.collect(ticket).map_err(failure)?;
    let logits = executor.logits(part.len())?;
    if part.end == tokens.len() {
        let close = Batch { step: StepId(2), closes: vec![slot], ..Batch::default() };
        let ticket = executor.submit(&close).map_err(failure)?;
        executor.collect(ticket).map_err(failure)?;
    }
    Ok(logits)
}

/// What is asked for.
pub struct Request {
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    pub tokens: usize,
}

/// What came out of a request: tokens and their log probabilities.
pub type Text = Vec<(u32, Option<f32>)>;

pub fn random_spec(head_dim: u32, heads: u32, kv_heads: u32, window: Option<u32>) -> DecoderSpec {
    DecoderSpec {
        vocab_size: 1000,
        hidden_size: 192,
        layers: 3,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: 320,
        norm_eps: 1e-6,
        rope: RopeSpec { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::None },
        context_length: 1024,
        qkv_bias: false,
        qk_norm: window.is_none(),
        tied_embeddings: true,
        sliding_window: window,
    }
}

pub fn random_request(random: &mut Random) -> Request {
    let prompt = (0..random.between(1, 300)).map(|_| random.below(1000) as u32).collect();
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.0][random.below(3)],
        top_p: [1.0, 0.9][random.below(2)],
        frequency_penalty: [0.0, 0.5][random.below(2)],
        repetition_penalty: [1.0, 1.2][random.below(2)],
        seed: random.word(),
        logprobs: [Logprobs::Off, Logprobs::Top(2)][random.below(2)],
        ..SamplingParams::default()
    };
    Request { prompt, params, tokens: random.between(1, 40) }
}

/// Requests run in random company: chunks of random sizes mixed with decodes, two steps in flight, tokens fed back on
/// the device, pages dealt at random; each must give what it gives alone.
fn mixed(context: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-test-{}", std::process::id()));
    let (mut steps, mut requests) = (0, 0);
    let (stored, f32) = (WeightFormat::AsStored, WeightFormat::Float32);
    for (head_dim, heads, kv_heads, window, kv_format, weights) in [
        (64, 6, 2, None, KvFormat::Bf16, stored),
        (128, 4, 1, None, KvFormat::Bf16, stored),
        (64, 3, 3, Some(50), KvFormat::Bf16, stored),
        (128, 4, 2, None, KvFormat::Fp8E4m3, stored),
        (64, 6, 3, Some(70), KvFormat::Fp8E4m3, stored),
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

/// A request that has a slot.
struct Live {
    request: usize,
    computed: usize,
    sampled: usize,
    opened: bool,
    pages: Vec<u32>,
}

/// Drives an executor two steps deep without ever waiting for a token before planning the next.
pub struct Run<'a> {
    executor: &'a mut CudaExecutor,
    step: u64,
    free_pages: Vec<u32>,
    tickets: std::collections::VecDeque<(Ticket, Vec<(SlotId, usize)>)>,
}

impl<'a> Run<'a> {
    pub fn new(executor: &'a mut CudaExecutor) -> Self {
        let free_pages = (0..executor.spec().pages).collect();
        Self { executor, step: 0, free_pages, tickets: std::collections::VecDeque::new() }
    }

    pub fn all(
        &mut self,
        requests: &[Request],
        random: &mut Random,
        slots: usize,
    ) -> Result<Vec<Text>, Failure> {
        let mut texts = vec![Text::new(); requests.len()];
        let mut live: Vec<Option<Live>> = (0..slots).map(|_| None).collect();
        let (mut next, mut closes) = (0, Vec::new());
        loop {
            for place in live.iter_mut() {
                if place.is_none() && next < requests.len() && (slots == 1 || random.below(3) > 0) {
                    *place = Some(Live {
                        request: next,
                        computed: 0,
                        sampled: 0,
                        opened: false,
                        pages: Vec::new(),
                    });
                    next += 1;
                }
            }
            if next == requests.len() && live.iter().all(Option::is_none) {
                break;
            }
            let mut batch = Batch {
                step: StepId(self.step + 1),
                closes: std::mem::take(&mut closes),
                ..Batch::default()
            };
            let (mut sampled, mut freed) = (Vec::new(), Vec::new());
            for (slot, place) in live.iter_mut().enumerate() {
                let Some(one) = place else { continue };
                if slots > 1 && random.below(5) == 0 {
                    continue;
                }
                self.add(&mut batch, SlotId(slot as u32), one, requests, random, slots, &mut sampled);
                if one.sampled == requests[one.request].tokens {
                    closes.push(SlotId(slot as u32));
                    freed.append(&mut one.pages);
                    *place = None;
                }
            }
            self.free_pages.append(&mut freed);
            if batch.sequences.is_empty() && batch.closes.is_empty() {
                continue;
            }
            self.step += 1;
            let ticket = self.executor.submit(&batch).map_err(failure)?;
            self.tickets.push_back((ticket, sampled));
            if self.tickets.len() == 2 {
                self.collect(&mut texts)?;
            }
        }
        while !self.tickets.is_empty() {
            self.collect(&mut texts)?;
        }
        if !closes.is_empty() {
            let batch = Batch { step: StepId(self.step + 1), closes, ..Batch::default() };
            let ticket = self.executor.submit(&batch).map_err(failure)?;
            self.executor.collect(ticket).map_err(failure)?;
        }
        Ok(texts)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of one request, all of it")]
    fn add(
        &mut self,
        batch: &mut Batch,
        slot: SlotId,
        one: &mut Live,
        requests: &[Request],
        random: &mut Random,
        slots: usize,
        sampled: &mut Vec<(SlotId, usize)>,
    ) {
        let request = &requests[one.request];
        let left = 256 - batch.tokens.len();
        let (start, tokens) = if one.computed < request.prompt.len() {
            let rest = &request.prompt[one.computed..];
            let most = rest.len().min(left);
            let take = if slots == 1 { most } else { random.between(1, most.max(1)).min(most) };
            (one.computed, rest[..take].to_vec())
        } else {
            (one.computed, vec![PLACEHOLDER; 1.min(left)])
        };
        if tokens.is_empty() {
            return;
        }
        if !one.opened {
            one.opened = true;
            batch.opens.push(OpenSlot {
                slot,
                params: request.params.clone(),
                choice: 0,
                prompt: request.prompt.clone(),
                output: Vec::new(),
            });
        }
        one.computed += tokens.len();
        while one.pages.len() * (PAGE_SIZE as usize) < one.computed {
            let at = random.below(self.free_pages.len());
            one.pages.push(self.free_pages.swap_remove(at));
        }
        let sample = one.computed >= request.prompt.len();
        let (first, first_page) = (batch.tokens.len() as u32, batch.pages.len() as u32);
        batch.tokens.extend(&tokens);
        batch.pages.extend(&one.pages);
        batch.sequences.push(SequenceStep {
            slot,
            tokens: first..batch.tokens.len() as u32,
            start: start as u32,
            pages: first_page..batch.pages.len() as u32,
            sample,
            score: None,
        });
        if sample {
            one.sampled += 1;
            sampled.push((slot, one.request));
        }
    }

    fn collect(&mut self, texts: &mut [Text]) -> Result<(), Failure> {
        let Some((ticket, expected)) = self.tickets.pop_front() else { return Ok(()) };
        let outputs = self.executor.collect(ticket).map_err(failure)?;
        ensure(outputs.sampled.len() == expected.len(), || "as many tokens as rows".into())?;
        for (sampled, (slot, request)) in outputs.sampled.iter().zip(expected) {
            ensure(sampled.slot == slot, || "tokens in batch order".into())?;
            texts[request].push((sampled.token, sampled.logprob));
        }
        Ok(())
    }
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
    let broken: [fn(&mut Batch); 7] = [
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
    let ticket = executor.submit(&good).map_err(failure)?;
    let outputs = executor.collect(ticket).map_err(failure)?;
    ensure(outputs.sampled.len() == 1, || "the good batch runs after the broken ones".into())?;
    Ok(format!("{} refused", broken.len()))
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
        for (step, &token) in prompt.iter().enumerate().skip(first) {
            let open = OpenSlot {
                slot: SlotId(0),
                params: SamplingParams { logprobs: Logprobs::Top(0), ..SamplingParams::default() },
                choice: 0,
                prompt: Vec::new(),
                output: Vec::new(),
            };
            let score = Score { from: 0, next: Some(prompt[(step + 1) % prompt.len()]) };
            let batch = Batch {
                step: StepId(step as u64 + 1),
                opens: if step == first { vec![open] } else { Vec::new() },
                sequences: vec![SequenceStep {
                    slot: SlotId(0),
                    tokens: 0..1,
                    start: step as u32,
                    pages: 0..table.len() as u32,
                    sample: false,
                    score: Some(score),
                }],
                tokens: vec![token],
                pages: table.to_vec(),
                ..Batch::default()
            };
            let ticket = executor.submit(&batch).map_err(failure)?;
            let outputs = executor.collect(ticket).map_err(failure)?;
            logprobs.push(outputs.scored[0].tokens[0].0);
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
