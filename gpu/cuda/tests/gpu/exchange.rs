//! Prompts that go on elsewhere: pages of the GPU on the CPU, and back.

use cpu::{CpuConfig, CpuExecutor, KvDtype, Precision};
use cuda::{CudaConfig, CudaExecutor, KvBudget, WeightFormat};
use kv::{Arrangement, PageLayout, Rearrangement};
use models::{
    Executor, Model, Score,
    fixtures::{self, Case as Text},
};

use crate::{
    harness::{Case, Context, Failure, Outcome, ensure},
    lone,
    random::Random,
    setup::{PAGE_SIZE, config, failure, log_softmax},
};

/// Pages that are carried over.
const CARRIED: u32 = 2;
/// Positions computed after them; a window of the models ends soon after.
const AFTER: usize = 8;
/// Twice what a prompt computed on the GPU alone may be away: of few positions.
const BF16_BOUND: f64 = 0.16;
const F32_BOUND: f64 = 1e-3;

pub fn cases() -> Vec<Case> {
    vec![Case { name: "transfer: prompts go on between CPU and GPU", run: exchange }]
}

fn layout(executor: &dyn Executor) -> PageLayout {
    let spec = executor.spec();
    PageLayout {
        revision: "test".to_owned(),
        name: spec.kv.name.clone(),
        page_size: spec.page_size,
        layers: spec.kv.layers,
        layer_bytes: spec.kv.layer_bytes,
    }
}

/// Computes positions `from .. to` of a text whose pages are `first_page ..`; log probabilities of what follows each.
fn run(
    executor: &mut dyn Executor,
    tokens: &[u32],
    positions: std::ops::Range<usize>,
    first_page: u32,
) -> Result<Vec<f32>, Failure> {
    let pages = (first_page..first_page + (positions.end as u32).div_ceil(PAGE_SIZE)).collect();
    let score = Score { from: 0, next: Some(tokens[positions.end]) };
    let scored = lone::scored(executor, lone::step(tokens, positions, pages, score), 0)?;
    Ok(scored.into_iter().map(|(logprob, _)| logprob).collect())
}

/// How far what follows the carried pages is from the reference, if both layouts are what `meaning` makes of them.
fn carried(
    from: &mut dyn Executor,
    to: &mut dyn Executor,
    text: &Text,
    meaning: fn(PageLayout) -> PageLayout,
) -> Result<f64, Failure> {
    const THERE: u32 = 8;
    let (tokens, begin) = (text.tokens(), (CARRIED * PAGE_SIZE) as usize);
    run(from, &tokens, 0..begin, 0)?;
    let rearrangement = Rearrangement::new(&meaning(layout(from)), &meaning(layout(to)));
    let rearrangement = rearrangement.ok_or_else(|| failure("pages cannot be rearranged"))?;
    let mut page = vec![0; from.spec().kv.page_bytes()];
    for number in 0..CARRIED {
        from.read_page(number, &mut page).map_err(failure)?;
        to.write_page(THERE + number, &rearrangement.page(&page)).map_err(failure)?;
    }
    let found = run(to, &tokens, begin..begin + AFTER, THERE)?;
    let differences = (begin..).zip(found).map(|(position, found)| {
        let reference = log_softmax(text.logits(position))[tokens[position + 1] as usize];
        (f64::from(found) - reference).abs()
    });
    Ok(differences.sum::<f64>() / AFTER as f64)
}

/// As if no element of a key turned: halves of narrow keys are then looked for where they are not.
fn misread(layout: PageLayout) -> PageLayout {
    let arrangement = layout.arrangement().expect("an executor's layout");
    PageLayout { name: Arrangement { turning: 0, ..arrangement }.to_string(), ..layout }
}

/// Weights on the GPU, keys and values on the CPU, and the mean difference of log probabilities to the f32 reference
/// that this may cost.
const KINDS: [(WeightFormat, KvDtype, Precision, f64); 4] = [
    (WeightFormat::AsStored, KvDtype::F16, Precision::Packed, BF16_BOUND),
    (WeightFormat::AsStored, KvDtype::Bf16, Precision::Packed, BF16_BOUND),
    (WeightFormat::AsStored, KvDtype::F32, Precision::Packed, BF16_BOUND),
    (WeightFormat::Float32, KvDtype::F32, Precision::F32, F32_BOUND),
];

fn exchange(_: &Context, _: &mut Random) -> Outcome {
    let (mut worst, mut spoiled, mut count) = ([0.0f64; 2], f64::INFINITY, 0);
    for (name, checkpoint) in fixtures::checkpoints() {
        let model = Model::open(&checkpoint.path).map_err(failure)?;
        for (weights, kv_dtype, precision, bound) in KINDS {
            let gpu = CudaConfig { weights, ..config(2, 64, KvBudget::Pages(16)) };
            let mut gpu = CudaExecutor::new(&model, &gpu, &mut |_| ())?;
            let kv = cpu::KvBudget::Pages(16);
            let cpu = CpuConfig { kv_dtype, kv, precision, ..CpuConfig::default() };
            let mut cpu = CpuExecutor::new(&model, &cpu, &mut |_| ()).map_err(failure)?;
            let is_f32 = weights == WeightFormat::Float32;
            for text in checkpoint.cases.iter().filter(|text| text.tokens().len() > 48) {
                let there = carried(&mut gpu, &mut cpu, text, |layout| layout)?;
                let back = carried(&mut cpu, &mut gpu, text, |layout| layout)?;
                let what = || format!("{name}, {}: {there:.1e} and {back:.1e}", kv_dtype.name());
                ensure(there.max(back) < bound, what)?;
                let worst = &mut worst[usize::from(is_f32)];
                *worst = worst.max(there).max(back);
                if is_f32 {
                    spoiled = spoiled.min(carried(&mut gpu, &mut cpu, text, misread)?);
                }
                count += 2;
            }
        }
    }
    ensure(spoiled > 2.0 * F32_BOUND, || format!("misread pages do no harm: {spoiled:.1e}"))?;
    let [bf16, f32] = worst;
    Ok(format!(
        "{count} prompts, bf16 at most {bf16:.3} from the reference, f32 {f32:.1e}, misread {spoiled:.1e} or more"
    ))
}
