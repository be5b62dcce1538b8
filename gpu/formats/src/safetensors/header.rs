use std::{collections::BTreeMap, ops::Range};

use crate::{DType, error::ErrorKind};

/// Longest JSON header read. Real ones take about 100 bytes a tensor.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
const LENGTH_BYTES: usize = 8;

/// The checked table of contents of one file.
#[derive(Debug, Default)]
pub struct Header {
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// `None` if this crate has no such type (integers, masks); the tensor is known but cannot be read.
    pub dtype: Option<DType>,
    /// The file's own name of the element type.
    pub stored_as: String,
    pub shape: Vec<usize>,
    /// In the file.
    pub bytes: Range<usize>,
}

impl Header {
    /// Reads and checks the header of a whole file: offsets without gap or overlap, sizes that fit the shapes, and
    /// data that ends where the file ends.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`], naming the header field or the tensor.
    pub fn parse(file: &[u8]) -> Result<Self, ErrorKind> {
        let length = file.first_chunk::<LENGTH_BYTES>();
        let length =
            length.ok_or_else(|| header("the file is shorter than the 8 bytes of the header length"))?;
        let length = u64::from_le_bytes(*length);
        let rest = file.len() - LENGTH_BYTES;
        if length > MAX_HEADER_BYTES {
            return Err(header(format!("length {length} is above the limit of {MAX_HEADER_BYTES} bytes")));
        }
        if length > rest as u64 {
            return Err(header(format!(
                "length {length} is beyond the end of the file ({rest} bytes follow)"
            )));
        }
        let data_start = LENGTH_BYTES + length as usize;
        let (_, metadata) = safetensors::SafeTensors::read_metadata(file).map_err(|error| match error {
            safetensors::SafeTensorError::InvalidOffset(name) => {
                ErrorKind::malformed(name, "data offsets overlap, leave a gap or run backwards")
            }
            safetensors::SafeTensorError::MetadataIncompleteBuffer => {
                header(format!("tensor data does not fill the {} bytes that follow", file.len() - data_start))
            }
            other => header(other),
        })?;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = start
                .checked_add(data_start)
                .zip(end.checked_add(data_start))
                .filter(|&(start, end)| start <= end && end <= file.len())
                .ok_or_else(|| ErrorKind::malformed(&name, "data offsets are beyond the end of the file"))?;
            let tensor = TensorInfo {
                dtype: super::dtype(info.dtype),
                stored_as: info.dtype.to_string(),
                shape: info.shape.clone(),
                bytes: bytes.0..bytes.1,
            };
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors })
    }
}

fn header(reason: impl std::fmt::Display) -> ErrorKind {
    ErrorKind::malformed("safetensors header", reason)
}
