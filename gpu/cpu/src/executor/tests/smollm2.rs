//! The quantised kernels on a real model: its distributions against those of an f32 computation from the same
//! (dequantised) weights. Skipped where the file is not in the cache.

use models::{Model, Score, fixtures};

use super::rig::{Rig, Work, greedy};
use crate::{CpuConfig, KvBudget, Precision};

pub fn model() -> Option<Model> {
    let Some(path) = fixtures::smollm2_file() else {
        println!("skipped: no SmolLM2 file, see scripts/model");
        return None;
    };
    Some(Model::open(&path).unwrap())
}

/// Teacher-forced: mean divergence, and positions where the best token is another although the reference's lead over
/// the second is at least `gap` nats.
fn divergence(model: &Model, precision: Precision, gap: f32) -> (f64, usize) {
    const ROWS: usize = 50;
    let reference = fixtures::smollm2();
    let config = CpuConfig { threads: 2, kv: KvBudget::Pages(64), precision, ..CpuConfig::default() };
    let mut rig = Rig::new(model, &config);
    let mut sequence = rig.open(0, greedy(), 0, &[]);
    let (mut total, mut flips) = (0.0, 0);
    for (tokens, positions) in reference.tokens.chunks(ROWS).zip(reference.positions.chunks(ROWS)) {
        rig.add(&mut sequence, Work { tokens, sample: false, score: Some(Score { from: 0, next: Some(0) }) });
        rig.run();
        for (row, position) in positions.iter().enumerate() {
            let logits = rig.cpu.logits(row);
            total += position.divergence(logits);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            flips += usize::from(best != position.ids[0] as usize && position.gap() >= gap);
        }
    }
    (total / reference.positions.len() as f64, flips)
}

#[test]
fn packed_weights_diverge_little_from_f32() {
    let Some(model) = model() else { return };
    let (mean, flips) = divergence(&model, Precision::Packed, 0.3);
    println!("packed: mean divergence {mean:.6} nats, {flips} flips");
    assert!(mean < 0.004, "{mean}");
    assert_eq!(flips, 0);
}

#[test]
fn f32_weights_agree_with_the_reference() {
    let Some(model) = model() else { return };
    let (mean, flips) = divergence(&model, Precision::F32, 0.02);
    println!("f32: mean divergence {mean:.8} nats, {flips} flips");
    assert!(mean < 1e-5, "{mean}");
    assert_eq!(flips, 0);
}
