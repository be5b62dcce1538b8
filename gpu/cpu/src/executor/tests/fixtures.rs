//! The logits of Hugging Face transformers.

use models::{Model, Score, fixtures};

use super::rig::{Rig, Work, f32_config, greedy};
use crate::{CpuConfig, Isa};

/// Part of the largest logit by which logits may differ.
pub const BOUND: f32 = 5e-5;

/// Runs all cases of a checkpoint side by side, prompts in chunks of `chunk`, continuations token by token as the
/// reference has them, and returns the largest difference of a logit over [`BOUND`], 1 being just within it.
/// `greedy_agrees` is whether each sampled token was the reference's.
pub struct Comparison {
    pub worst: f32,
    pub greedy_agrees: bool,
}

pub fn compare(
    checkpoint: &fixtures::Checkpoint,
    model: &Model,
    config: &CpuConfig,
    chunk: usize,
) -> Comparison {
    let mut rig = Rig::new(model, config);
    let mut open: Vec<_> = (0..)
        .zip(&checkpoint.cases)
        .map(|(slot, case)| (case, case.tokens(), rig.open(slot, greedy(), 0, &[])))
        .collect();
    let mut result = Comparison { worst: 0.0, greedy_agrees: true };
    loop {
        let mut rows = Vec::new();
        for (case, tokens, sequence) in &mut open {
            let start = sequence.len as usize;
            if start == tokens.len() {
                continue;
            }
            let end =
                if start < case.prompt.len() { case.prompt.len().min(start + chunk) } else { start + 1 };
            let score = Some(Score { from: 0, next: Some(0) });
            rig.add(sequence, Work { tokens: &tokens[start..end], sample: end >= case.prompt.len(), score });
            rows.extend((start..end).map(|position| (*case, position)));
        }
        if rows.is_empty() {
            return result;
        }
        let outputs = rig.run();
        let mut sampled = outputs.sampled.iter();
        for (index, (case, position)) in rows.into_iter().enumerate() {
            let logits = rig.cpu.logits(index);
            let bound = BOUND * case.max_logit();
            for (ours, theirs) in logits.iter().zip(case.logits(position)) {
                result.worst = result.worst.max((ours - theirs).abs() / bound);
            }
            if position + 1 >= case.prompt.len() {
                let expected = case.greedy[position + 1 - case.prompt.len()];
                result.greedy_agrees &= sampled.next().unwrap().token == expected;
            }
        }
    }
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for (name, checkpoint) in fixtures::checkpoints() {
        let model = Model::open(&checkpoint.path).unwrap();
        for chunk in [1, 7, 30] {
            let Comparison { worst, greedy_agrees } = compare(&checkpoint, &model, &f32_config(), chunk);
            println!("{name} in chunks of {chunk}: {worst:.3} of the bound");
            assert!(worst <= 1.0, "{name} in chunks of {chunk}: {worst} times the bound");
            assert!(greedy_agrees, "{name} in chunks of {chunk}");
        }
    }
}

#[test]
fn greedy_continuations_run_free_on_every_instruction_set() {
    for (name, checkpoint) in fixtures::checkpoints() {
        let model = Model::open(&checkpoint.path).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut rig = Rig::new(&model, &CpuConfig { isa: Some(isa), ..f32_config() });
            for (slot, case) in (0..).zip(&checkpoint.cases) {
                let mut sequence = rig.open(slot, greedy(), 0, &[]);
                let mut token = rig.run_one(&mut sequence, &case.prompt);
                for &expected in &case.greedy {
                    assert_eq!(token, expected, "{name} on {isa:?}");
                    token = rig.run_one(&mut sequence, &[models::PLACEHOLDER]);
                }
            }
        }
    }
}
