//! FP8 checkpoints.

use models::{DType, DecoderSpec, Executor, Model, synthetic};

use super::rig::{Rig, f32_config, greedy};
use crate::{CpuConfig, Precision};

/// Logits after a short prompt.
fn logits(dtype: DType, precision: Precision) -> (Vec<f32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let spec = DecoderSpec { hidden_size: 192, intermediate_size: 320, ..synthetic::toy_spec() };
    synthetic::write_random_checkpoint(folder.path(), &spec, dtype, 9).unwrap();
    let model = Model::open(folder.path()).unwrap();
    let mut rig = Rig::new(&model, &CpuConfig { precision, ..f32_config() });
    let mut sequence = rig.open(0, greedy(), 0, &[]);
    rig.run_one(&mut sequence, &[5, 80, 13, 200, 31]);
    (rig.cpu.logits(0).to_vec(), rig.cpu.spec().numerics_class.clone())
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn fp8_weights_are_served_dequantised() {
    let (packed, class) = logits(DType::F8E4M3, Precision::Packed);
    let (exact, _) = logits(DType::F8E4M3, Precision::F32);
    let (original, _) = logits(DType::F32, Precision::F32);
    assert!(class.contains("f8e4m3"), "{class}");
    assert!(distance(&packed, &exact) < 1e-5, "what is packed means what the file means");
    let off = distance(&exact, &original);
    assert!(off > 1e-3 && off < 0.2, "as far from the original weights as FP8 has to be: {off}");
}
