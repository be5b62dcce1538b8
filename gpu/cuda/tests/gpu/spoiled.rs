//! Sequences whose logits are not finite, beside others.

use cuda::{CudaConfig, CudaExecutor, KvBudget, WeightFormat, ops::GemmMode};
use models::{
    Batch, Model, OpenSlot, PLACEHOLDER, Sampled, SamplingParams, SequenceStep, SlotId, StepId, fixtures,
};

use crate::{
    harness::{Case, Context, Failure, Outcome, ensure},
    lone,
    random::Random,
    setup::{config, failure},
};

const SPOILED: u32 = 7;
const LENGTH: u32 = 20;

pub fn cases() -> Vec<Case> {
    vec![Case { name: "executor: logits that are not finite are marked", run: marked }]
}

/// A prompt, or what was sampled behind it, in the two pages of a slot.
struct Row {
    slot: u32,
    pages: u32,
    prompt: Option<u32>,
}

fn batch(step: u64, closes: &[u32], rows: &[Row]) -> Batch {
    let mut batch = Batch { step: StepId(step), ..Batch::default() };
    batch.closes = closes.iter().map(|&slot| SlotId(slot)).collect();
    for row in rows {
        let (first, pages) = (batch.tokens.len() as u32, batch.pages.len() as u32);
        match row.prompt {
            Some(token) => {
                batch.tokens.extend((0..LENGTH).map(|at| if at % 2 == 0 { 5 } else { token }));
                batch.opens.push(OpenSlot {
                    slot: SlotId(row.slot),
                    params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                    choice: 0,
                    prompt: Vec::new(),
                    output: Vec::new(),
                });
            }
            None => batch.tokens.push(PLACEHOLDER),
        }
        batch.pages.extend([row.pages, row.pages + 1]);
        batch.sequences.push(SequenceStep {
            slot: SlotId(row.slot),
            tokens: first..batch.tokens.len() as u32,
            start: if row.prompt.is_some() { 0 } else { LENGTH },
            pages: pages..pages + 2,
            sample: true,
            score: None,
        });
    }
    batch
}

fn marked(_: &Context, _: &mut Random) -> Outcome {
    let folder = tempfile::tempdir().map_err(failure)?;
    fixtures::write_spoiled_toy(folder.path(), SPOILED);
    let model = Model::open(folder.path()).map_err(failure)?;
    let plain = || config(4, 64, KvBudget::Pages(8));
    let configs = [
        plain(),
        CudaConfig { persistent: false, ..plain() },
        CudaConfig { gemm: GemmMode::BatchVariant, ..plain() },
        CudaConfig { weights: WeightFormat::Float32, ..plain() },
    ];
    for config in &configs {
        let mut executor = CudaExecutor::new(&model, config, &mut |_| ())?;
        let mut step = 0;
        let mut run = |closes: &[u32], rows: &[Row]| -> Result<Vec<Sampled>, Failure> {
            step += 1;
            Ok(lone::run(&mut executor, &batch(step, closes, rows))?.sampled)
        };
        let row = |slot, pages, prompt| Row { slot, pages, prompt };
        let alone = [run(&[], &[row(0, 0, Some(9))])?, run(&[], &[row(0, 0, None)])?];
        let prompts = [row(1, 2, Some(9)), row(2, 4, Some(SPOILED)), row(3, 6, Some(9))];
        let beside = [run(&[], &prompts)?, run(&[], &[row(1, 2, None), row(2, 4, None), row(3, 6, None)])?];
        // in the pages that the spoiled one leaves
        let after = [run(&[2], &[row(2, 4, Some(9))])?, run(&[], &[row(2, 4, None)])?];
        for (at, alone) in alone.iter().enumerate() {
            let finite = beside[at].iter().map(|sampled| sampled.finite).collect::<Vec<_>>();
            ensure(finite == [true, false, true], || format!("step {at} marks {finite:?}"))?;
            for sound in [&beside[at][0], &beside[at][2], &after[at][0]] {
                ensure(sound.finite && sound.token == alone[0].token, || {
                    format!("{sound:?}, alone {alone:?}")
                })?;
            }
        }
    }
    Ok(format!("{} executors, the others as alone", configs.len()))
}
