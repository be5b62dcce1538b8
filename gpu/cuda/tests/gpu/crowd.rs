//! Steps of up to as many rows as are captured: filled up, and beside prompts.

use cuda::{CudaConfig, CudaExecutor, KvBudget, KvFormat, WeightFormat};
use models::{DType, DecoderSpec, Model, synthetic};

use crate::{
    company::{Request, Run, random_request},
    harness::{Case, Context, Outcome, ensure},
    random::Random,
    setup::{config, failure, random_spec, wide_spec},
};

pub fn cases() -> Vec<Case> {
    vec![Case { name: "crowd: hundreds of rows give the tokens of lone runs", run: crowd }]
}

const SLOTS: usize = 256;
const REQUESTS: usize = 400;
/// Those that begin with more than one token.
const PROMPTS: usize = 16;
const COMPARED: usize = 100;
/// Of so many sequences one is left out of a step: enough are in it for the most rows.
const LEFT_OUT: usize = 40;
/// Steps of more than one and fewer than the next rows are filled up.
const CAPTURED: [usize; 7] = [64, 96, 128, 160, 192, 224, SLOTS];

fn requests(light: bool, random: &mut Random) -> Vec<Request> {
    let count = if light { SLOTS } else { REQUESTS };
    let request = |number| {
        let mut request = random_request(random);
        if number >= PROMPTS {
            request.prompt.truncate(1);
        }
        request.tokens = if light { 2 } else { random.between(1, 80) };
        request
    };
    (0..count).map(request).collect()
}

fn crowd(context: &Context, random: &mut Random) -> Outcome {
    // so many logits are products whose k is one run
    let many_tokens = DecoderSpec { vocab_size: 33_000, ..random_spec(64, 6, 2, None) };
    let kinds = [
        (many_tokens, KvFormat::Fp8E4m3, WeightFormat::AsStored),
        (wide_spec(), KvFormat::Bf16, WeightFormat::AsStored),
        (random_spec(128, 4, 1, None), KvFormat::Bf16, WeightFormat::Fp8),
    ];
    let folder = tempfile::tempdir().map_err(failure)?;
    let (mut steps, mut compared) = (0, 0);
    for (spec, kv_format, weights) in kinds.into_iter().take(if context.light { 1 } else { usize::MAX }) {
        synthetic::write_random_checkpoint(folder.path(), &spec, DType::BF16, random.word())
            .map_err(failure)?;
        let model = Model::open(folder.path()).map_err(failure)?;
        let config = CudaConfig { kv_format, weights, ..config(SLOTS as u32, 512, KvBudget::Pages(2000)) };
        let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
        let all = requests(context.light, random);
        let mut together = Run::new(&mut executor);
        together.left_out = LEFT_OUT;
        let texts = together.all(&all, random, SLOTS)?;
        let rows = &together.decoded;
        for pair in CAPTURED.windows(2).filter(|_| !context.light) {
            let filled_up = rows.range(pair[0] + 1..pair[1]).next().is_some();
            ensure(filled_up, || format!("no step of {} to {} rows among {rows:?}", pair[0], pair[1]))?;
        }
        steps += together.step;
        for _ in 0..if context.light { 2 } else { COMPARED } {
            let number = random.below(all.len());
            let alone = Run::new(&mut executor).all(&all[number..=number], random, 1)?;
            ensure(alone[0] == texts[number], || {
                let at = alone[0].iter().zip(&texts[number]).position(|(a, b)| a != b);
                let (width, prompt) = (spec.hidden_size, all[number].prompt.len());
                format!("width {width}, prompt of {prompt}: request {number} differs from token {at:?} on")
            })?;
            compared += 1;
        }
    }
    Ok(format!("{steps} steps of up to {SLOTS} rows, {compared} requests bit-equal alone"))
}
