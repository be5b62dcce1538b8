//! The comparison with the reference notices mistakes: each of these breaks the bound clearly.

use std::fs;

use models::{Model, RopeScaling, fixtures};

use super::{
    fixtures::{BOUND, compare},
    rig::f32_config,
};

/// A mistake counts as noticed if it takes a logit this many times over the bound.
const CLEARLY: f32 = 10.0;

fn worst_with(name: &str, mistake: impl FnOnce(&mut Model)) -> f32 {
    let checkpoint = fixtures::checkpoint(name);
    let mut model = Model::open(&checkpoint.path).unwrap();
    mistake(&mut model);
    compare(&checkpoint, &model, &f32_config(), 16).worst
}

#[test]
fn a_wrong_rope_base_is_noticed() {
    for name in ["llama", "qwen2", "qwen3", "mistral"] {
        let worst = worst_with(name, |model| model.spec.rope.theta *= 1.01);
        assert!(worst > CLEARLY, "{name}: {worst}");
    }
}

#[test]
fn a_missing_rope_scaling_is_noticed() {
    for name in ["llama3_rope", "linear_rope", "yarn_rope"] {
        let worst = worst_with(name, |model| model.spec.rope.scaling = RopeScaling::None);
        assert!(worst > CLEARLY, "{name}: {worst}");
    }
}

#[test]
fn a_window_off_by_one_is_noticed() {
    for by in [-1, 1] {
        let worst = worst_with("mistral", |model| {
            model.spec.sliding_window =
                model.spec.sliding_window.and_then(|window| window.checked_add_signed(by));
        });
        assert!(worst > CLEARLY, "{by}: {worst}");
    }
    assert!(worst_with("mistral", |model| model.spec.sliding_window = None) > CLEARLY);
}

#[test]
fn a_missing_qk_norm_is_noticed() {
    assert!(worst_with("qwen3", |model| model.spec.qk_norm = false) > CLEARLY);
}

#[test]
fn a_missing_bias_is_noticed() {
    assert!(worst_with("qwen2", |model| model.spec.qkv_bias = false) > CLEARLY);
}

#[test]
fn a_wrong_epsilon_is_noticed() {
    for name in ["llama", "qwen2", "qwen3", "mistral"] {
        let worst = worst_with(name, |model| {
            model.spec.norm_eps = if model.spec.norm_eps < 5e-6 { 1e-5 } else { 1e-6 };
        });
        assert!(worst > 1.0, "{name}: {worst} of {BOUND}");
    }
}

#[test]
fn swapped_kv_heads_are_noticed() {
    for name in ["llama", "qwen2", "qwen3", "mistral"] {
        let checkpoint = fixtures::checkpoint(name);
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(&checkpoint.path).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        swap_halves(&folder.path().join("model.safetensors"), "layers.0.self_attn.k_proj.weight");
        let model = Model::open(folder.path()).unwrap();
        let worst = compare(&checkpoint, &model, &f32_config(), 16).worst;
        assert!(worst > CLEARLY, "{name}: {worst}");
    }
}

/// Exchanges the first and the second half of a tensor's rows.
fn swap_halves(path: &std::path::Path, tensor: &str) {
    let mut bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let (_, entry) = header.as_object().unwrap().iter().find(|(name, _)| name.ends_with(tensor)).unwrap();
    let offset = |i: usize| 8 + header_len + entry["data_offsets"][i].as_u64().unwrap() as usize;
    let (start, end) = (offset(0), offset(1));
    bytes[start..end].rotate_left((end - start) / 2);
    fs::write(path, bytes).unwrap();
}
