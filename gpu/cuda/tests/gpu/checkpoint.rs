//! Checkpoints written anew with their matrices in bf16.

use std::{fs, path::Path};

use formats::Safetensors;
use half::{bf16, f16};
use models::{DType, LayerWeight, Model, WeightId};

use crate::{
    harness::{Failure, ensure},
    setup::failure,
};

/// Tensors on their way into a file.
#[derive(Default)]
struct Tensors {
    header: serde_json::Map<String, serde_json::Value>,
    data: Vec<u8>,
}

impl Tensors {
    fn add(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: &[u8]) {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let place = [start, self.data.len()];
        let entry = serde_json::json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": place });
        self.header.insert(name.to_owned(), entry);
    }

    fn write(self, folder: &Path) -> Result<(), Failure> {
        let header = serde_json::Value::from(self.header).to_string().into_bytes();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat();
        fs::write(folder.join("model.safetensors"), file).map_err(failure)
    }
}

/// Writes the checkpoint `from`, in f16, as bf16 keeps its matrices.
pub fn write_rounded(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).map_err(failure)?;
    fs::copy(from.join("config.json"), to.join("config.json")).map_err(failure)?;
    let files = Safetensors::open(from).map_err(failure)?;
    let mut tensors = Tensors::default();
    for name in files.names() {
        let tensor = files.tensor(name).map_err(failure)?;
        ensure(tensor.dtype == DType::F16, || format!("{name} is not stored in f16"))?;
        if tensor.shape.len() == 2 {
            let halves = tensor.data.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]));
            let rounded: Vec<u8> =
                halves.flat_map(|half| bf16::from_f32(half.to_f32()).to_le_bytes()).collect();
            tensors.add(name, DType::BF16, tensor.shape, &rounded);
        } else {
            tensors.add(name, DType::F16, tensor.shape, tensor.data);
        }
    }
    tensors.write(to)
}

/// Writes the checkpoint `from`, in FP8, as its codes and scales say.
pub fn write_plain(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).map_err(failure)?;
    let config = fs::read(from.join("config.json")).map_err(failure)?;
    let mut config: serde_json::Value = serde_json::from_slice(&config).map_err(failure)?;
    config["quantization_config"] = serde_json::Value::Null;
    fs::write(to.join("config.json"), config.to_string()).map_err(failure)?;
    let (model, files) = (Model::open(from).map_err(failure)?, Safetensors::open(from).map_err(failure)?);
    let mut tensors = Tensors::default();
    for name in files.names() {
        let tensor = files.tensor(name).map_err(failure)?;
        if tensor.dtype == DType::BF16 && !name.ends_with("_scale_inv") {
            tensors.add(name, DType::BF16, tensor.shape, tensor.data);
        }
    }
    for (layer, name, weight) in (0..model.spec.layers).flat_map(|layer| {
        [
            ("self_attn.q_proj", LayerWeight::Q),
            ("self_attn.k_proj", LayerWeight::K),
            ("self_attn.v_proj", LayerWeight::V),
            ("self_attn.o_proj", LayerWeight::O),
            ("mlp.gate_proj", LayerWeight::Gate),
            ("mlp.up_proj", LayerWeight::Up),
            ("mlp.down_proj", LayerWeight::Down),
        ]
        .map(|(name, weight)| (layer, name, weight))
    }) {
        let matrix = model.weights.get(WeightId::Layer(layer, weight)).map_err(failure)?;
        ensure(matrix.dtype == DType::F8E4M3, || format!("{name} is not stored in fp8"))?;
        let (shape, plain) = ([matrix.rows, matrix.cols], matrix.without_scales());
        tensors.add(&format!("model.layers.{layer}.{name}.weight"), DType::BF16, &shape, &plain.data);
    }
    tensors.write(to)
}
