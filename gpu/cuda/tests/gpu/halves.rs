//! Steps as two halves beside each other against the same steps launch after launch.

use cuda::{CudaConfig, CudaExecutor, KvBudget};
use models::{DType, DecoderSpec, Model, synthetic};

use crate::{
    company::{Request, Run, Text, random_request},
    harness::{Case, Context, Outcome, ensure},
    random::Random,
    setup::{config, failure, random_spec, wide_spec},
};

pub fn cases() -> Vec<Case> {
    vec![Case { name: "halves: steps have the bits of whole ones", run: same_bits }]
}

/// Steps of 33 to 64 rows are halved.
const SLOTS: usize = 64;
const REQUESTS: usize = 80;

/// Shapes that differ in heads, windows, biases and tiles of wide products.
fn specs() -> Vec<DecoderSpec> {
    vec![
        random_spec(64, 6, 2, None),
        DecoderSpec { qkv_bias: true, qk_norm: false, ..random_spec(64, 4, 4, Some(50)) },
        wide_spec(),
    ]
}

/// Few tokens of many requests if `light`: steps that are halved have many rows.
fn requests(light: bool, random: &mut Random) -> Vec<Request> {
    (0..REQUESTS)
        .map(|number| {
            let mut request = random_request(random);
            // most only decode
            request.prompt.truncate(match number % 8 {
                _ if light => 1,
                0 => 300,
                _ => 20,
            });
            request.tokens = if light { 6 } else { request.tokens.max(24) };
            request
        })
        .collect()
}

fn same_bits(context: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-halves-{}", std::process::id()));
    let mut tokens = 0;
    for spec in specs().into_iter().take(if context.light { 1 } else { usize::MAX }) {
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let all = requests(context.light, random);
        let seed = random.word();
        let texts = |halves_from: Option<usize>, graphs: bool| -> Result<Vec<Text>, _> {
            let config =
                CudaConfig { halves_from, graphs, ..config(SLOTS as u32, 512, KvBudget::Pages(2500)) };
            let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
            Run::new(&mut executor).all(&all, &mut Random::new(seed), SLOTS)
        };
        let whole = texts(None, true)?;
        for graphs in [true, false] {
            let halves = texts(Some(0), graphs)?;
            for (number, (halves, whole)) in halves.iter().zip(&whole).enumerate() {
                let at = halves.iter().zip(whole).position(|(a, b)| a != b);
                ensure(halves == whole, || {
                    format!("width {}, request {number} differs from token {at:?} on", spec.hidden_size)
                })?;
                tokens += halves.len();
            }
        }
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    Ok(format!("{tokens} tokens bit-equal"))
}
