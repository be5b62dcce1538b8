//! A request's tokens and log probabilities have the same bits whatever runs beside it, however its prompt is cut,
//! wherever its pages lie, on any number of threads and any instruction set.

use models::{
    DType, DecoderSpec, Logprobs, Model, PLACEHOLDER, RopeScaling, RopeSpec, SamplingParams, Score, TokenId,
    synthetic::write_random_checkpoint,
};

use super::rig::{Random, Rig, Sequence, Work};
use crate::{CpuConfig, Isa, KvBudget, KvDtype, Precision};

const VOCAB: usize = 300;

/// Shapes that fit no vector: heads of 24, groups of 3, a last tile that is not full.
fn spec() -> DecoderSpec {
    DecoderSpec {
        vocab_size: VOCAB as u32,
        hidden_size: 96,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 24,
        intermediate_size: 160,
        norm_eps: 1e-5,
        rope: RopeSpec { theta: 10_000.0, dim: 24, scaling: RopeScaling::None },
        context_length: 2048,
        qkv_bias: false,
        qk_norm: false,
        tied_embeddings: true,
        sliding_window: None,
    }
}

fn model(spec: &DecoderSpec) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    write_random_checkpoint(folder.path(), spec, DType::BF16, 11).unwrap();
    let model = Model::open(folder.path()).unwrap();
    (folder, model)
}

fn config() -> CpuConfig {
    CpuConfig {
        threads: 2,
        kv_dtype: KvDtype::F16,
        kv: KvBudget::Pages(400),
        slots: 16,
        max_batch_tokens: 128,
        precision: Precision::Packed,
        ..CpuConfig::default()
    }
}

/// A request and what is known of it.
struct Request {
    prompt: Vec<TokenId>,
    outputs: usize,
    params: SamplingParams,
    choice: u32,
}

/// Everything that an executor says of a request, as bits.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<u32>,
    prompt_logprobs: Vec<u32>,
}

fn request(random: &mut Random) -> Request {
    let len = match random.below(20) {
        0 => 200 + random.below(400),
        1..=5 => 1 + random.below(8),
        _ => 1 + random.below(60),
    };
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.5][random.below(3)],
        top_k: [0, 5][random.below(2)],
        top_p: [1.0, 0.8][random.below(2)],
        presence_penalty: [0.0, 0.5][random.below(2)],
        seed: random.below(1000) as u64,
        logprobs: Logprobs::Top(2),
        ..SamplingParams::default()
    };
    Request {
        prompt: random.tokens(len, VOCAB),
        outputs: 1 + random.below(12),
        params,
        choice: random.below(3) as u32,
    }
}

/// A request on its way.
struct Running<'a> {
    index: usize,
    request: &'a Request,
    sequence: Sequence,
    answer: Answer,
}

impl Running<'_> {
    fn done(&self) -> bool {
        self.answer.tokens.len() == self.request.outputs
    }
}

/// Adds up to `budget` tokens of a request to the next step.
fn add(rig: &mut Rig, running: &mut Running<'_>, budget: usize) -> usize {
    let prompt = &running.request.prompt;
    let start = running.sequence.len as usize;
    if start >= prompt.len() {
        rig.add(&mut running.sequence, Work { tokens: &[PLACEHOLDER], sample: true, score: None });
        return 1;
    }
    let end = prompt.len().min(start + budget);
    let score = Some(Score { from: 0, next: prompt.get(end).copied() });
    let work = Work { tokens: &prompt[start..end], sample: end == prompt.len(), score };
    rig.add(&mut running.sequence, work);
    end - start
}

fn take(outputs: &models::Outputs, running: &mut Running<'_>) {
    let slot = running.sequence.slot;
    for scored in outputs.scored.iter().filter(|scored| scored.slot == slot) {
        for (logprob, top) in &scored.tokens {
            running.answer.prompt_logprobs.push(logprob.to_bits());
            running.answer.prompt_logprobs.extend(top.iter().map(|top| top.logprob.to_bits()));
        }
    }
    for sampled in outputs.sampled.iter().filter(|sampled| sampled.slot == slot) {
        running.answer.tokens.push(sampled.token);
        running.answer.logprobs.push(sampled.logprob.unwrap().to_bits());
        running.answer.logprobs.extend(sampled.top.iter().map(|top| top.logprob.to_bits()));
    }
}

/// One after the other, prompts in as few steps as possible.
fn alone(rig: &mut Rig, requests: &[Request]) -> Vec<Answer> {
    let budget = config().max_batch_tokens as usize;
    requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let sequence = rig.open(0, request.params.clone(), request.choice, &request.prompt);
            let mut running = Running { index, request, sequence, answer: Answer::default() };
            while !running.done() {
                add(rig, &mut running, budget);
                let outputs = rig.run();
                take(&outputs, &mut running);
            }
            rig.close(running.sequence, 0);
            running.answer
        })
        .collect()
}

/// In random company, random chunks, random pages.
fn mixed(rig: &mut Rig, requests: &[Request], random: &mut Random) -> Vec<Answer> {
    let spec = config();
    let mut answers = vec![Answer::default(); requests.len()];
    let mut waiting = requests.iter().enumerate();
    let mut slots: Vec<u32> = (0..spec.slots).collect();
    let mut running: Vec<Running<'_>> = Vec::new();
    loop {
        while random.below(3) > 0 && !slots.is_empty() && rig.free_pages() > 60 {
            let Some((index, request)) = waiting.next() else { break };
            rig.shuffle_pages(|n| random.below(n));
            let slot = slots.swap_remove(random.below(slots.len()));
            let sequence = rig.open(slot, request.params.clone(), request.choice, &request.prompt);
            running.push(Running { index, request, sequence, answer: Answer::default() });
        }
        if running.is_empty() && waiting.len() == 0 {
            return answers;
        }
        let mut budget = spec.max_batch_tokens as usize;
        for one in &mut running {
            if budget > 0 && random.below(5) > 0 {
                budget -= add(rig, one, 1 + random.below(budget));
            }
        }
        let outputs = rig.run();
        running.iter_mut().for_each(|one| take(&outputs, one));
        let (done, others) = running.into_iter().partition(Running::done);
        running = others;
        for one in Vec::from_iter(done) {
            slots.push(one.sequence.slot.0);
            rig.close(one.sequence, 0);
            answers[one.index] = one.answer;
        }
    }
}

fn requests(count: usize, seed: u64) -> Vec<Request> {
    let mut random = Random(seed);
    (0..count).map(|_| request(&mut random)).collect()
}

#[test]
fn two_thousand_requests_are_answered_in_company_as_alone() {
    let (_folder, model) = model(&spec());
    let requests = requests(2000, 1);
    let expected = alone(&mut Rig::new(&model, &config()), &requests);
    for (threads, seed) in [(1, 2), (3, 3)] {
        let mut rig = Rig::new(&model, &CpuConfig { threads, ..config() });
        let answers = mixed(&mut rig, &requests, &mut Random(seed));
        let different = expected.iter().zip(&answers).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "on {threads} threads");
    }
}

#[test]
fn other_families_and_kv_types_are_answered_in_company_as_alone() {
    let windowed = DecoderSpec { sliding_window: Some(70), heads: 10, kv_heads: 1, ..spec() };
    let normed = DecoderSpec { qk_norm: true, heads: 4, kv_heads: 4, head_dim: 32, ..spec() };
    let normed = DecoderSpec { rope: RopeSpec { dim: 32, ..normed.rope.clone() }, ..normed };
    for (spec, kv_dtype, precision) in
        [(windowed, KvDtype::Bf16, Precision::Packed), (normed, KvDtype::F32, Precision::F32)]
    {
        let (_folder, model) = model(&spec);
        let config = CpuConfig { kv_dtype, precision, ..config() };
        let requests = requests(150, 4);
        let expected = alone(&mut Rig::new(&model, &config), &requests);
        let mut rig = Rig::new(&model, &CpuConfig { page_size: 64, kv: KvBudget::Pages(150), ..config });
        assert!(expected == mixed(&mut rig, &requests, &mut Random(5)), "{kv_dtype:?}");
    }
}

#[test]
fn every_instruction_set_answers_with_the_same_bits() {
    let (_folder, model) = model(&spec());
    let requests = requests(60, 6);
    let answers: Vec<_> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.is_available())
        .map(|isa| alone(&mut Rig::new(&model, &CpuConfig { isa: Some(isa), ..config() }), &requests))
        .collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_real_model_answers_in_company_as_alone_and_on_every_instruction_set() {
    let Some(model) = super::smollm2::model() else { return };
    let requests = requests(24, 9);
    let config = CpuConfig { kv: KvBudget::Pages(200), ..config() };
    let expected = alone(&mut Rig::new(&model, &config), &requests);
    let mut rig = Rig::new(&model, &CpuConfig { threads: 3, ..config.clone() });
    assert!(expected == mixed(&mut rig, &requests, &mut Random(10)));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        // Plain Rust is slow.
        let few = if isa == Isa::Scalar { 1 } else { 6 };
        let mut rig = Rig::new(&model, &CpuConfig { isa: Some(isa), ..config.clone() });
        assert!(expected[..few] == alone(&mut rig, &requests[..few]), "{isa:?}");
    }
}

/// A prompt whose beginning another sequence has computed gives what it gives from scratch: whole pages are shared,
/// a partly filled one is copied.
#[test]
fn a_shared_prefix_changes_nothing() {
    let (_folder, model) = model(&spec());
    let mut rig = Rig::new(&model, &config());
    let mut random = Random(7);
    for shared in [16, 37, 300] {
        let mut request = request(&mut random);
        request.prompt = random.tokens(shared + 23, VOCAB);
        let expected = alone(&mut rig, std::slice::from_ref(&request)).remove(0);
        let mut first = rig.open(3, request.params.clone(), 0, &request.prompt);
        for chunk in request.prompt[..shared].chunks(100) {
            rig.add(&mut first, Work { tokens: chunk, sample: false, score: None });
            rig.run();
        }
        let mut sequence = rig.open(5, request.params.clone(), request.choice, &request.prompt);
        rig.share(&mut sequence, &first, shared as u32);
        let whole = shared / 16;
        let mut running = Running { index: 0, request: &request, sequence, answer: Answer::default() };
        while !running.done() {
            add(&mut rig, &mut running, 128);
            let outputs = rig.run();
            take(&outputs, &mut running);
        }
        assert_eq!(running.answer.tokens, expected.tokens);
        assert_eq!(running.answer.logprobs, expected.logprobs);
        assert!(expected.prompt_logprobs.ends_with(&running.answer.prompt_logprobs));
        rig.close(running.sequence, whole);
        rig.close(first, 0);
    }
}

/// After a preemption or a repair a sequence is opened with what it has put out and goes on as if nothing had been.
#[test]
fn a_sequence_goes_on_from_its_output() {
    let (_folder, model) = model(&spec());
    let mut rig = Rig::new(&model, &config());
    let mut random = Random(8);
    for _ in 0..20 {
        let request = Request { outputs: 12, ..request(&mut random) };
        let expected = alone(&mut rig, std::slice::from_ref(&request)).remove(0);
        let known = 1 + random.below(11);
        let (output, rest) = expected.tokens.split_at(known);
        let mut sequence = rig.open_again(1, request.params.clone(), request.choice, &request.prompt, output);
        let input = [&request.prompt[..], output].concat();
        let mut tokens = Vec::new();
        for chunk in input.chunks(100) {
            let sample = sequence.len as usize + chunk.len() == input.len();
            rig.add(&mut sequence, Work { tokens: chunk, sample, score: None });
            tokens.extend(rig.run().sampled.first().map(|sampled| sampled.token));
        }
        while tokens.len() < rest.len() {
            tokens.push(rig.run_one(&mut sequence, &[PLACEHOLDER]));
        }
        assert_eq!(tokens, rest);
        rig.close(sequence, 0);
    }
}
