use std::fs;

use formats::DecoderConfig;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    sequence_length: u32,
    inverse_frequencies: Vec<f32>,
    attention_factor: f32,
}

#[test]
fn frequencies_are_those_of_transformers_for_every_scaling() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/rope.json");
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        fs::write(&file, case.config.to_string()).unwrap();
        let config = DecoderConfig::from_config_json(&file).unwrap();
        let table = rope_frequencies(&config.decoder.rope, case.sequence_length);
        assert_eq!(table.inverse_frequencies.len(), case.inverse_frequencies.len(), "{}", case.config);
        assert!((table.attention_factor - case.attention_factor).abs() <= 1e-7, "{}", case.config);
        for (ours, theirs) in table.inverse_frequencies.iter().zip(&case.inverse_frequencies) {
            assert!((ours - theirs).abs() <= 2.0 * f32::EPSILON * theirs, "{ours} {theirs}: {}", case.config);
        }
    }
}

#[test]
fn a_table_of_factors_divides_each_frequency() {
    let plain = RopeSpec { theta: 10_000.0, dim: 8, scaling: RopeScaling::None };
    let scaling = RopeScaling::Factors { factors: vec![1.0, 2.0, 4.0, 8.0] };
    let scaled = rope_frequencies(&RopeSpec { scaling, ..plain.clone() }, 1);
    let plain = rope_frequencies(&plain, 1);
    let ratio = |i: usize| plain.inverse_frequencies[i] / scaled.inverse_frequencies[i];
    assert_eq!([0, 1, 2, 3].map(ratio), [1.0, 2.0, 4.0, 8.0]);
}
