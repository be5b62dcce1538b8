//! Steps as one kernel against the same steps as many, on both sides of the most rows that it takes.

use cuda::{CudaConfig, CudaExecutor, KvBudget};
use models::{DType, DecoderSpec, Model, SamplingParams, synthetic};

use crate::{
    company::{Request, Run, Text, random_request},
    harness::{Case, Context, Outcome, ensure},
    random::Random,
    setup::{config, failure, random_spec, wide_spec},
};

pub fn cases() -> Vec<Case> {
    vec![Case { name: "persistent: steps have the bits of separate kernels", run: same_bits }]
}

/// More than the most rows of a persistent step, 8.
const SLOTS: usize = 12;
/// Embedding, 6 a layer, norm, head and sampling; the layers and the embedding are one launch of the persistent kernel.
const SEPARATE_LAUNCHES: u64 = 3 * 6 + 4;
const PERSISTENT_LAUNCHES: u64 = 4;

/// Positions of the pool.
const POSITIONS: u32 = 9600;

/// Shapes that differ in what the kernel shares out: heads, windows, biases, matrices of several places of its ring, units
/// that do not divide evenly among blocks. With each, tokens of a page: a part of an attention tile, one, or several.
fn shapes() -> Vec<(DecoderSpec, u32)> {
    let wide = DecoderSpec { context_length: 8192, ..wide_spec() };
    vec![
        (random_spec(64, 6, 2, None), 16),
        (random_spec(128, 4, 1, None), 256),
        (random_spec(64, 3, 3, Some(50)), 8),
        (DecoderSpec { qkv_bias: true, qk_norm: false, ..random_spec(64, 16, 1, None) }, 128),
        (wide.clone(), 16),
        (wide, 512),
    ]
}

/// Short prompts, so that most steps only decode; now and then one whose parts are folded in several rounds.
fn requests(random: &mut Random, context_length: u32) -> Vec<Request> {
    let mut all: Vec<Request> = (0..14).map(|_| random_request(random)).collect();
    for request in all.iter_mut().skip(4) {
        request.prompt.truncate(30);
    }
    if context_length > 4500 {
        all.push(Request {
            prompt: (0..4500).map(|_| random.below(1000) as u32).collect(),
            params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            choice: 0,
            tokens: 20,
        });
    }
    all
}

fn same_bits(context: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-persistent-{}", std::process::id()));
    let mut tokens = 0;
    for (spec, page_size) in shapes().into_iter().take(if context.light { 2 } else { usize::MAX }) {
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let mut all = requests(random, spec.context_length);
        if context.light {
            all.truncate(4);
            for request in &mut all {
                request.prompt.truncate(140);
                request.tokens = request.tokens.min(3);
            }
        }
        let seed = random.word();
        let texts = |persistent: bool, launches: u64, at_once: usize| -> Result<Vec<Text>, _> {
            // each sequence may leave its last page almost empty
            let pages = KvBudget::Pages(POSITIONS / page_size + SLOTS as u32);
            let config = CudaConfig { persistent, page_size, ..config(SLOTS as u32, 256, pages) };
            let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
            let found = executor.launches_per_decode_step();
            ensure(found == launches, || format!("{found} launches a step, not {launches}"))?;
            Run::new(&mut executor).all(&all, &mut Random::new(seed), at_once)
        };
        let many = texts(false, SEPARATE_LAUNCHES, SLOTS)?;
        for at_once in [SLOTS, 1] {
            let one = texts(true, PERSISTENT_LAUNCHES, at_once)?;
            for (request, (one, many)) in all.iter().zip(one.iter().zip(&many)) {
                ensure(one == many, || {
                    let at = one.iter().zip(many).position(|(a, b)| a != b);
                    let (hidden, prompt) = (spec.hidden_size, request.prompt.len());
                    format!(
                        "width {hidden}, pages of {page_size}, prompt of {prompt}, {at_once} at once: differs \
                         from token {at:?} on"
                    )
                })?;
                tokens += one.len();
            }
        }
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    Ok(format!("{tokens} tokens bit-equal"))
}
