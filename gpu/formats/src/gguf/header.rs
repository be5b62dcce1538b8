use std::{collections::BTreeMap, ops::Range};

use super::{Metadata, cursor::Cursor, types};
use crate::{DType, error::ErrorKind, tensor::tensor_bytes};

/// Longest tensor name. The format says 64; some files have a little more.
const MAX_NAME_BYTES: usize = 256;
const MAX_DIMENSIONS: u32 = 4;
const MAX_TENSORS: usize = 1 << 20;
/// Name length, a byte of name, number of dimensions, one dimension, type, offset.
const LEAST_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;
const DEFAULT_ALIGNMENT: u32 = 32;
const MAX_ALIGNMENT: u32 = 1 << 16;

/// Everything before the tensor data, checked against the length of the file.
#[derive(Debug)]
pub struct Header {
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Offset of the tensor data in the file.
    pub data_start: usize,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: DType,
    /// Outermost dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    /// In the file.
    pub bytes: Range<usize>,
}

impl Header {
    /// Reads and checks the header of a whole file: known types, whole blocks, aligned offsets, data inside the
    /// file and without overlap, no name or key twice.
    ///
    /// # Errors
    /// Naming the header field, metadata key or tensor.
    pub fn parse(file: &[u8]) -> Result<Self, ErrorKind> {
        let mut cursor = Cursor::new(file);
        if cursor.array("magic")? != types::MAGIC {
            return Err(ErrorKind::malformed("magic", "not a GGUF file"));
        }
        match cursor.u32("version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err(ErrorKind::unsupported("version", "big-endian data"));
            }
            version => return Err(ErrorKind::unsupported("version", format!("GGUF version {version}"))),
        }
        let tensor_count = cursor.count(LEAST_TENSOR_BYTES, MAX_TENSORS, "tensor count")?;
        let pairs = Metadata::count(&mut cursor)?;
        let metadata = Metadata::parse(&mut cursor, pairs)?;
        let alignment = alignment(&metadata)?;

        let mut tensors = BTreeMap::new();
        for i in 0..tensor_count {
            let name = cursor.string(MAX_NAME_BYTES, &format!("name of tensor {i}"))?;
            let info = tensor_info(&mut cursor, name, alignment)?;
            if tensors.insert(name.to_owned(), info).is_some() {
                return Err(ErrorKind::malformed(name, "tensor given twice"));
            }
        }
        let data_start = cursor.position().next_multiple_of(alignment);
        place(&mut tensors, data_start, file.len())?;
        Ok(Self { metadata, tensors, data_start: data_start.min(file.len()) })
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, ErrorKind> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.u32(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let reason = format!("{alignment} is not a power of two up to {MAX_ALIGNMENT}");
        return Err(ErrorKind::malformed(KEY, reason));
    }
    Ok(alignment as usize)
}

/// Reads one entry; its byte range is still relative to the tensor data.
fn tensor_info(cursor: &mut Cursor<'_>, name: &str, alignment: usize) -> Result<TensorInfo, ErrorKind> {
    let dimensions = cursor.u32(name)?;
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        let reason = format!("{dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}");
        return Err(ErrorKind::malformed(name, reason));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        match usize::try_from(cursor.u64(name)?) {
            Ok(length) if length > 0 => shape.push(length),
            _ => return Err(ErrorKind::malformed(name, "a dimension of length 0 or beyond memory")),
        }
    }
    shape.reverse();
    let number = cursor.u32(name)?;
    let dtype =
        types::dtype(number).ok_or_else(|| ErrorKind::unsupported(name, format!("tensor type {number}")))?;
    let start = usize::try_from(cursor.u64(name)?).ok().filter(|start| start.is_multiple_of(alignment));
    let start = start
        .ok_or_else(|| ErrorKind::malformed(name, format!("data offset not a multiple of {alignment}")))?;
    let bytes = tensor_bytes(dtype, &shape)
        .ok_or_else(|| ErrorKind::malformed(name, format!("shape {shape:?} is not a size of {dtype}")))?;
    let end = start.checked_add(bytes).ok_or_else(|| ErrorKind::malformed(name, "data offset overflows"))?;
    Ok(TensorInfo { dtype, shape, bytes: start..end })
}

/// Turns relative ranges into ranges of the file, refusing overlap and what lies beyond its end.
fn place(tensors: &mut BTreeMap<String, TensorInfo>, start: usize, end: usize) -> Result<(), ErrorKind> {
    for (name, info) in tensors.iter_mut() {
        let range = start.checked_add(info.bytes.start).zip(start.checked_add(info.bytes.end));
        match range {
            Some((first, last)) if last <= end => info.bytes = first..last,
            _ => {
                let reason = format!(
                    "data at {} of {} bytes is beyond the end of the file, which may be truncated",
                    info.bytes.start,
                    info.bytes.len()
                );
                return Err(ErrorKind::malformed(name, reason));
            }
        }
    }
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, info)| info.bytes.start);
    match ordered.windows(2).find(|pair| pair[0].1.bytes.end > pair[1].1.bytes.start) {
        Some(pair) => Err(ErrorKind::malformed(pair[1].0, format!("data overlaps that of {}", pair[0].0))),
        None => Ok(()),
    }
}
