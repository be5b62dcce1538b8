use std::{fs, path::PathBuf};

use formats::gguf::{Value, Writer};
use tempfile::TempDir;

use super::*;
use crate::{Model, fixtures, synthetic};

/// Writes an open model as a GGUF file would hold it, tensors in the types that `dtype` gives.
fn write_gguf(model: &Model, architecture: &str, dtype: impl Fn(WeightId) -> DType) -> (TempDir, PathBuf) {
    let spec = &model.spec;
    let mut writer = Writer::new();
    writer.text("general.architecture", architecture);
    for (key, number) in [
        ("vocab_size", spec.vocab_size),
        ("context_length", spec.context_length),
        ("embedding_length", spec.hidden_size),
        ("block_count", spec.layers),
        ("feed_forward_length", spec.intermediate_size),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
        ("rope.dimension_count", spec.rope.dim),
    ] {
        writer.number(&format!("{architecture}.{key}"), number);
    }
    let float = |number: f32| Value::Float(number.into());
    writer.pair(&format!("{architecture}.attention.layer_norm_rms_epsilon"), &float(spec.norm_eps));
    writer.pair(&format!("{architecture}.rope.freq_base"), &float(spec.rope.theta));
    for id in WeightId::all(spec) {
        let matrix = model.weights.get(id).unwrap();
        let (dtype, mut data) = stored(&matrix, dtype(id));
        if let Some(heads) = id.rotated_heads(spec).filter(|_| architecture == "llama") {
            data = pair_rows(&data, heads, if id.is_vector() { matrix.cols } else { matrix.rows });
        }
        let shape = if id.is_vector() { vec![matrix.cols] } else { vec![matrix.rows, matrix.cols] };
        writer.tensor(&names::gguf(id), dtype, &shape, &data);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, writer.finish()).unwrap();
    (folder, path)
}

/// The matrix in F32 as it is, or as Q8_0 blocks of scale 1.
fn stored(matrix: &Matrix<'_>, dtype: DType) -> (DType, Vec<u8>) {
    match dtype {
        DType::Q8_0 => {
            let block = |values: &[f32]| {
                let scale = half::f16::from_f32(1.0).to_le_bytes();
                let quants = values.iter().map(|value| (value * 40.0) as i8 as u8);
                scale.into_iter().chain(quants).collect::<Vec<u8>>()
            };
            (dtype, matrix.to_f32().chunks(32).flat_map(block).collect())
        }
        _ => (DType::F32, matrix.data.to_vec()),
    }
}

/// What converters to GGUF do for `llama`: rows `i` and `i + half` of a head become rows `2i` and `2i + 1`.
fn pair_rows(data: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let (row_bytes, per_head) = (data.len() / rows, rows / heads);
    let mut paired = vec![0; data.len()];
    for row in 0..rows {
        let (head, i) = (row / per_head, row % per_head);
        let place = head * per_head + i % (per_head / 2) * 2 + i / (per_head / 2);
        paired[place * row_bytes..][..row_bytes].copy_from_slice(&data[row * row_bytes..][..row_bytes]);
    }
    paired
}

fn same_weights(model: &Model, other: &Model) {
    assert_eq!(model.spec, other.spec);
    for id in WeightId::all(&model.spec) {
        let (ours, theirs) = (model.weights.get(id).unwrap(), other.weights.get(id).unwrap());
        assert_eq!((ours.rows, ours.cols), (theirs.rows, theirs.cols), "{id:?}");
        assert_eq!(ours.to_f32(), theirs.to_f32(), "{id:?}");
    }
}

#[test]
fn a_gguf_file_gives_the_same_weights_as_the_folder_it_was_made_from() {
    for (name, architecture) in [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")] {
        let model = Model::open(&fixtures::checkpoint(name).path).unwrap();
        let (_folder, path) = write_gguf(&model, architecture, |_| DType::F32);
        same_weights(&Model::open(&path).unwrap(), &model);
    }
}

#[test]
fn biases_of_a_llama_gguf_file_are_put_back_in_order_too() {
    let folder = tempfile::tempdir().unwrap();
    let spec = DecoderSpec { qkv_bias: true, ..synthetic::toy_spec() };
    synthetic::write_random_checkpoint(folder.path(), &spec, DType::F32, 3).unwrap();
    let model = Model::open(folder.path()).unwrap();
    let (_folder, path) = write_gguf(&model, "llama", |_| DType::F32);
    same_weights(&Model::open(&path).unwrap(), &model);
}

#[test]
fn quantised_rows_move_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write_toy(folder.path()).unwrap();
    let model = Model::open(folder.path()).unwrap();
    let quantised = |id: WeightId| if id.is_vector() { DType::F32 } else { DType::Q8_0 };
    let (_folder, path) = write_gguf(&model, "llama", quantised);
    let gguf = Model::open(&path).unwrap();
    for weight in [LayerWeight::Q, LayerWeight::K, LayerWeight::V] {
        let id = WeightId::Layer(1, weight);
        let expected = stored(&model.weights.get(id).unwrap(), DType::Q8_0).1;
        let matrix = gguf.weights.get(id).unwrap();
        assert_eq!((matrix.dtype, matrix.data.as_ref()), (DType::Q8_0, expected.as_slice()), "{id:?}");
    }
    assert_eq!(gguf.weights.matrix_dtypes().into_iter().collect::<Vec<_>>(), [DType::Q8_0]);
}

#[test]
fn a_tied_head_is_the_embedding_and_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write_toy(folder.path()).unwrap();
    let model = Model::open(folder.path()).unwrap();
    let [head, embedding] =
        [WeightId::Head, WeightId::Embedding].map(|id| model.weights.get(id).unwrap().data);
    assert_eq!(head, embedding);
    let elements = |id: WeightId| id.shape(&model.spec).0 * id.shape(&model.spec).1;
    let total: usize = WeightId::all(&model.spec).map(elements).sum();
    assert_eq!(model.weights.bytes(), 4 * total as u64);
}

#[test]
fn asking_for_what_the_model_lacks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write_toy(folder.path()).unwrap();
    let model = Model::open(folder.path()).unwrap();
    for id in [WeightId::Layer(0, LayerWeight::QBias), WeightId::Layer(2, LayerWeight::Q)] {
        assert!(matches!(model.weights.get(id), Err(ModelError::NoSuchWeight(lacking)) if lacking == id));
    }
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_refused_by_name() {
    let error = |change: fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        synthetic::write_toy(folder.path()).unwrap();
        let config = folder.path().join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        change(&mut json);
        fs::write(&config, json.to_string()).unwrap();
        Model::open(folder.path()).unwrap_err().to_string()
    };
    let wider = error(|config| config["intermediate_size"] = 160.into());
    assert_eq!(
        wider,
        "tensor model.layers.0.mlp.gate_proj.weight has shape [128, 64], the configuration calls for [160, 64]"
    );
    let deeper = error(|config| config["num_hidden_layers"] = 3.into());
    assert!(deeper.contains("tensor model.layers.2.input_layernorm.weight is missing"), "{deeper}");
    let untied = error(|config| config["tie_word_embeddings"] = false.into());
    assert!(untied.contains("tensor lm_head.weight is missing"), "{untied}");
}

#[test]
fn a_quantised_norm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::write_toy(folder.path()).unwrap();
    let model = Model::open(folder.path()).unwrap();
    let (_folder, path) = write_gguf(&model, "llama", |_| DType::Q8_0);
    let error = Model::open(&path).unwrap_err().to_string();
    assert_eq!(error, "tensor blk.0.attn_norm.weight is stored as Q8_0, which no executor runs for it");
}

/// A folder of FP8 weights of which `change` may spoil the tables of contents: names to entries.
fn fp8_folder(change: impl FnOnce(&mut serde_json::Value, &mut Vec<u8>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let spec = DecoderSpec { hidden_size: 192, intermediate_size: 320, ..synthetic::toy_spec() };
    synthetic::write_random_checkpoint(folder.path(), &spec, DType::F8E4M3, 5).unwrap();
    let path = folder.path().join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    change(&mut header, &mut data);
    let header = header.to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(path, file).unwrap();
    folder
}

const GATE: &str = "model.layers.1.mlp.gate_proj.weight";
const GATE_SCALES: &str = "model.layers.1.mlp.gate_proj.weight_scale_inv";

#[test]
fn fp8_weights_are_their_codes_times_the_scales_of_their_blocks() {
    let folder = fp8_folder(|_, _| ());
    let model = Model::open(folder.path()).unwrap();
    assert_eq!(model.weights.matrix_dtypes().into_iter().collect::<Vec<_>>(), [DType::BF16, DType::F8E4M3]);
    let gate = model.weights.get(WeightId::Layer(1, LayerWeight::Gate)).unwrap();
    let scales = gate.scales.clone().unwrap();
    assert_eq!((scales.cols, scales.values.len()), (2, 6), "320 x 192 elements are 3 x 2 blocks");
    let values = gate.to_f32();
    for (row, column) in [(0, 0), (127, 127), (127, 128), (128, 127), (319, 191)] {
        let code = formats::fp8::e4m3_to_f32(gate.row(row)[column]);
        let expected = code * scales.values[row / 128 * 2 + column / 128];
        assert_eq!(values[row * 192 + column], expected, "({row}, {column})");
    }
    let plain = gate.without_scales();
    assert_eq!((plain.dtype, plain.data.len(), plain.scales.is_none()), (DType::BF16, 2 * 320 * 192, true));
    let rounded: Vec<f32> = values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
    assert_eq!(plain.to_f32(), rounded);
}

#[test]
fn fp8_weights_are_close_to_what_they_were_made_from() {
    let folder = fp8_folder(|_, _| ());
    let model = Model::open(folder.path()).unwrap();
    let exact = tempfile::tempdir().unwrap();
    synthetic::write_random_checkpoint(exact.path(), &model.spec, DType::F32, 5).unwrap();
    let exact = Model::open(exact.path()).unwrap();
    for id in WeightId::all(&model.spec) {
        let [ours, theirs] = [&model, &exact].map(|model| model.weights.get(id).unwrap().to_f32());
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
        assert!(error < 0.04 * norm(&mut theirs.iter().copied()), "{id:?}: {error}");
    }
}

#[test]
fn malformed_scales_are_refused_by_name() {
    let error = |change: fn(&mut serde_json::Value, &mut Vec<u8>)| {
        Model::open(fp8_folder(change).path()).unwrap_err().to_string()
    };
    let poke = |header: &serde_json::Value, data: &mut Vec<u8>, value: f32| {
        let start = header[GATE_SCALES]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start + 6..start + 8].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    };
    let missing = error(|header, _| {
        let entry = header.as_object_mut().unwrap().remove(GATE_SCALES).unwrap();
        header["another"] = entry;
    });
    assert!(missing.contains(&format!("tensor {GATE_SCALES} is missing")), "{missing}");
    let turned = error(|header, _| header[GATE_SCALES]["shape"] = serde_json::json!([2, 3]));
    assert_eq!(turned, format!("tensor {GATE_SCALES} has shape [2, 3], the configuration calls for [3, 2]"));
    let integers = error(|header, _| header[GATE_SCALES]["dtype"] = "I16".into());
    assert!(integers.contains(&format!("{GATE_SCALES}: element type I16 is not supported")), "{integers}");
    let weights = error(|header, _| header[GATE]["dtype"] = "I8".into());
    assert!(weights.contains(&format!("{GATE}: element type I8 is not supported")), "{weights}");
    for value in [f32::NAN, -1.0, f32::INFINITY, 256.0] {
        let folder = fp8_folder(|header, data| poke(header, data, value));
        let error = Model::open(folder.path()).unwrap_err().to_string();
        let expected = format!("tensor {GATE_SCALES} holds the scale {value} at [1, 1]");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn an_fp8_norm_is_refused() {
    let folder = fp8_folder(|header, _| {
        let norm = &mut header["model.norm.weight"];
        norm["dtype"] = "F8_E4M3".into();
        let end = norm["data_offsets"][1].as_u64().unwrap();
        norm["data_offsets"][1] = (end - 192).into();
        header["rest"] =
            serde_json::json!({ "dtype": "F8_E4M3", "shape": [192], "data_offsets": [end - 192, end] });
    });
    let error = Model::open(folder.path()).unwrap_err().to_string();
    assert_eq!(error, "tensor model.norm.weight is stored as F8E4M3, which no executor runs for it");
}
