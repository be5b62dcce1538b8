use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use formats::{Architecture, DType, Gguf, Safetensors, Tensor};

use crate::{DecoderSpec, Matrix, ModelError};

mod id;
mod names;
mod scales;

pub use id::{LayerWeight, WeightId};
pub(crate) use names::safetensors as safetensors_name;
pub(crate) use scales::{MAX_SCALE, tensor_name as scales_name};

/// The weights of one model, mapped from its files. Every weight that the spec calls for is there, in its shape and
/// in a type that executors run; reading one copies nothing (but see [`Weights::get`]).
#[derive(Debug)]
pub struct Weights {
    files: Files,
    tied_embeddings: bool,
    found: BTreeMap<WeightId, Found>,
}

#[derive(Debug)]
enum Files {
    Safetensors(Safetensors),
    Gguf(Gguf),
}

#[derive(Debug)]
struct Found {
    tensor: String,
    rows: usize,
    cols: usize,
    /// Rows are stored in pairs for interleaved RoPE, in this many heads, and go back to the half-split order.
    paired_heads: Option<usize>,
}

impl Weights {
    /// Weights of a Hugging Face folder, or of one safetensors file.
    pub(crate) fn open_safetensors(path: &Path, spec: &DecoderSpec) -> Result<Self, ModelError> {
        Self::locate(Files::Safetensors(Safetensors::open(path)?), spec, names::safetensors, false)
    }

    pub(crate) fn open_gguf(
        file: Gguf,
        spec: &DecoderSpec,
        architecture: Architecture,
    ) -> Result<Self, ModelError> {
        // Converters reorder query and key rows for this architecture only.
        let paired = architecture == Architecture::Llama;
        Self::locate(Files::Gguf(file), spec, names::gguf, paired)
    }

    fn locate(
        files: Files,
        spec: &DecoderSpec,
        name: fn(WeightId) -> String,
        paired: bool,
    ) -> Result<Self, ModelError> {
        let mut found = BTreeMap::new();
        for id in WeightId::all(spec) {
            let tensor = name(id);
            let (rows, cols) = id.shape(spec);
            let stored = files.tensor(&tensor)?;
            check(&tensor, stored, rows, cols, id.is_vector())?;
            if stored.dtype == DType::F8E4M3 {
                scales::read(&files, &tensor, rows, cols)?;
            }
            let paired_heads = id.rotated_heads(spec).filter(|_| paired);
            found.insert(id, Found { tensor, rows, cols, paired_heads });
        }
        Ok(Self { files, tied_embeddings: spec.tied_embeddings, found })
    }

    /// A weight as stored. [`WeightId::Head`] is the embedding where they are tied.
    ///
    /// Queries and keys are always laid out for half-split RoPE; for GGUF files of the `llama` architecture, which
    /// store them for interleaved RoPE, this makes a copy with the rows put back in order.
    ///
    /// # Errors
    /// If the model has no such weight: a layer beyond the last, a bias or norm that its spec does not call for.
    pub fn get(&self, id: WeightId) -> Result<Matrix<'_>, ModelError> {
        let id = if id == WeightId::Head && self.tied_embeddings { WeightId::Embedding } else { id };
        let found = self.found.get(&id).ok_or(ModelError::NoSuchWeight(id))?;
        let tensor = self.files.tensor(&found.tensor)?;
        let data = match found.paired_heads {
            None => Cow::Borrowed(tensor.data),
            Some(heads) => Cow::Owned(unpair_rows(tensor.data, heads, found.features())),
        };
        let scales = match tensor.dtype {
            DType::F8E4M3 => Some(scales::read(&self.files, &found.tensor, found.rows, found.cols)?),
            _ => None,
        };
        Ok(Matrix { dtype: tensor.dtype, rows: found.rows, cols: found.cols, data, scales })
    }

    /// Bytes of all weights as stored, a tied head counted once.
    pub fn bytes(&self) -> u64 {
        let bytes =
            |found: &Found| self.files.tensor(&found.tensor).map_or(0, |tensor| tensor.data.len() as u64);
        self.found.values().map(bytes).sum()
    }

    /// Bytes of the matrices that are stored in this type.
    pub fn bytes_of(&self, dtype: DType) -> u64 {
        let tensors = self.found.values().filter_map(|found| self.files.tensor(&found.tensor).ok());
        tensors.filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.data.len() as u64).sum()
    }

    /// Types in which the matrices are stored, each once.
    pub fn matrix_dtypes(&self) -> BTreeSet<DType> {
        let matrices = self.found.iter().filter(|(id, _)| !id.is_vector());
        matrices
            .filter_map(|(_, found)| self.files.tensor(&found.tensor).ok())
            .map(|tensor| tensor.dtype)
            .collect()
    }
}

impl Found {
    /// Output features: the rows of a matrix, the elements of a vector.
    fn features(&self) -> usize {
        if self.rows == 1 { self.cols } else { self.rows }
    }
}

impl Files {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, formats::Error> {
        match self {
            Self::Safetensors(files) => files.tensor(name),
            Self::Gguf(file) => file.tensor(name),
        }
    }
}

fn check(name: &str, tensor: Tensor<'_>, rows: usize, cols: usize, vector: bool) -> Result<(), ModelError> {
    let expected: &[usize] = if vector { &[cols] } else { &[rows, cols] };
    if tensor.shape != expected {
        return Err(ModelError::Shape {
            tensor: name.into(),
            expected: expected.into(),
            found: tensor.shape.into(),
        });
    }
    let float = matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16);
    let runs = float || !vector;
    runs.then_some(()).ok_or_else(|| ModelError::Dtype { tensor: name.into(), dtype: tensor.dtype })
}

/// Undoes the reordering of rows for interleaved RoPE: in each head, rows `2i` and `2i + 1` turn together; in the
/// half-split layout these are rows `i` and `i + half`.
fn unpair_rows(data: &[u8], heads: usize, features: usize) -> Vec<u8> {
    let row_bytes = data.len() / features;
    let half = features / heads / 2;
    let mut ordered = Vec::with_capacity(data.len());
    for head in data.chunks_exact(data.len() / heads) {
        for part in 0..2 {
            for i in 0..half {
                ordered.extend_from_slice(&head[(2 * i + part) * row_bytes..][..row_bytes]);
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests;
