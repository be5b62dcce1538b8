use std::path::Path;

use super::*;
use crate::{Model, WeightId};

fn size_of(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_toy_opens_as_its_spec_and_is_small() {
    let dir = tempfile::tempdir().unwrap();
    write_toy(dir.path()).unwrap();
    let model = Model::open(dir.path()).unwrap();
    assert_eq!(model.spec, toy_spec());
    assert!(size_of(dir.path()) < 1_000_000);
}

#[test]
fn the_same_seed_writes_the_same_weights_and_another_seed_others() {
    let weights = |seed| {
        let dir = tempfile::tempdir().unwrap();
        write_random_checkpoint(dir.path(), &toy_spec(), DType::BF16, seed).unwrap();
        fs::read(dir.path().join("model.safetensors")).unwrap()
    };
    assert_eq!(weights(7), weights(7));
    assert_ne!(weights(7), weights(8));
}

#[test]
fn specs_of_every_family_and_scaling_read_back() {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 512,
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 512,
        beta_fast: 32.0,
        beta_slow: 1.5,
        attention_factor: Some(1.1),
        truncate: false,
    };
    let toy = toy_spec();
    let rope = |scaling: RopeScaling| RopeSpec { scaling, ..toy.rope.clone() };
    let specs = [
        DecoderSpec { qkv_bias: true, ..toy.clone() },
        DecoderSpec { qk_norm: true, tied_embeddings: false, ..toy.clone() },
        DecoderSpec { qk_norm: true, sliding_window: Some(64), ..toy.clone() },
        DecoderSpec { sliding_window: Some(32), norm_eps: 3e-6, ..toy.clone() },
        DecoderSpec { rope: RopeSpec { dim: 8, ..toy.rope.clone() }, ..toy.clone() },
        DecoderSpec { rope: rope(RopeScaling::Linear { factor: 2.5 }), ..toy.clone() },
        DecoderSpec {
            rope: rope(RopeScaling::Dynamic { factor: 2.0, original_context: 4096 }),
            ..toy.clone()
        },
        DecoderSpec { rope: rope(llama3), ..toy.clone() },
        DecoderSpec { rope: rope(yarn), ..toy.clone() },
    ];
    for spec in specs {
        let dir = tempfile::tempdir().unwrap();
        write_random_checkpoint(dir.path(), &spec, DType::F16, 1).unwrap();
        assert_eq!(Model::open(dir.path()).unwrap().spec, spec);
    }
}

#[test]
fn weights_have_the_spread_that_makes_attention_sharp() {
    let dir = tempfile::tempdir().unwrap();
    write_toy(dir.path()).unwrap();
    let model = Model::open(dir.path()).unwrap();
    let query = model.weights.get(WeightId::Layer(0, LayerWeight::Q)).unwrap().to_f32();
    let variance = query.iter().map(|x| x * x).sum::<f32>() / query.len() as f32;
    let expected = 1.7f32.powi(2) / 64.0;
    assert!((variance / expected - 1.0).abs() < 0.1, "{variance}, expected {expected}");
}

#[test]
fn what_no_architecture_can_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spec = DecoderSpec { qkv_bias: true, qk_norm: true, ..toy_spec() };
    let error = write_random_checkpoint(dir.path(), &spec, DType::F32, 1).unwrap_err();
    assert!(matches!(error, ModelError::Synthetic(_)), "{error}");
    let error = write_random_checkpoint(dir.path(), &toy_spec(), DType::Q4_0, 1).unwrap_err();
    assert!(matches!(error, ModelError::Synthetic(_)), "{error}");
}
