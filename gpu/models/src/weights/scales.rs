//! Scales that FP8 checkpoints keep beside a weight.

use formats::{DType, dequantise_row, fp8::SCALE_BLOCK};

use super::Files;
use crate::{BlockScales, ModelError};

/// Scales are below this, so that kernels may widen them by the difference of the exponents of FP8 and BF16.
pub(crate) const MAX_SCALE: f32 = 256.0;

/// What the file calls the scales of a tensor.
pub(crate) fn tensor_name(weight: &str) -> String {
    format!("{weight}_scale_inv")
}

/// Reads and checks the scales of the matrix that the file calls `weight`.
///
/// # Errors
/// Naming the tensor: if it is missing, of another shape or type, or holds what is no scale.
pub(super) fn read(files: &Files, weight: &str, rows: usize, cols: usize) -> Result<BlockScales, ModelError> {
    let name = tensor_name(weight);
    let tensor = files.tensor(&name)?;
    let shape = [rows.div_ceil(SCALE_BLOCK), cols.div_ceil(SCALE_BLOCK)];
    if tensor.shape != shape {
        return Err(ModelError::Shape { tensor: name, expected: shape.into(), found: tensor.shape.into() });
    }
    if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(ModelError::Dtype { tensor: name, dtype: tensor.dtype });
    }
    let [_, blocks] = shape;
    let mut values = vec![0.0; shape.iter().product()];
    dequantise_row(tensor.dtype, tensor.data, &mut values);
    if let Some(at) = values.iter().position(|scale| !(0.0..MAX_SCALE).contains(scale)) {
        return Err(ModelError::Scale { tensor: name, at: [at / blocks, at % blocks], value: values[at] });
    }
    Ok(BlockScales { values, cols: blocks })
}
