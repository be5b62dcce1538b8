//! GGUF versions 2 and 3, little-endian: metadata, then tensor infos, then aligned tensor data.
//!
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

mod cursor;
mod header;
mod metadata;
mod types;
mod writer;

use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use header::{Header, TensorInfo};
pub use metadata::{Array, Metadata, Value};
pub use writer::Writer;

use crate::{
    Tensor,
    error::{Error, ErrorKind, InFile},
    map::map_file,
};

/// A GGUF file, mapped into memory and checked in full at open.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl Gguf {
    /// # Errors
    /// If the file cannot be read, breaks the format, is one part of a split model or stores a tensor in a type
    /// that is none of [`crate::DType`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = map_file(path)?;
        let header = Header::parse(&map).in_file(path)?;
        let parts = header.metadata.u32("split.count").in_file(path)?.unwrap_or(1);
        if parts > 1 {
            let reason = format!("a model split into {parts} files (merge them first)");
            return Err(ErrorKind::unsupported("split.count", reason)).in_file(path);
        }
        Ok(Self { path: path.to_owned(), map, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// # Errors
    /// If there is no tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let Some(info) = self.header.tensors.get(name) else {
            let help = "the file is incomplete or of another architecture than its metadata says";
            return Err(ErrorKind::missing(format!("tensor {name}"), help)).in_file(&self.path);
        };
        Ok(Tensor { dtype: info.dtype, shape: &info.shape, data: &self.map[info.bytes.clone()] })
    }

    /// The tokenizer that the metadata describes, as a tokenizer.json.
    ///
    /// # Errors
    /// If the metadata describes none, or one of a kind that is not built.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, Error> {
        crate::tokenizer::from_gguf(self.metadata()).in_file(&self.path)
    }

    /// Every byte before the tensor data.
    pub(crate) fn head(&self) -> &[u8] {
        &self.map[..self.header.data_start]
    }

    /// Every tensor's name, stored type, shape and bytes, in order of names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &str, &[usize], &[u8])> + Clone {
        self.header.tensors.iter().map(|(name, info)| {
            (name.as_str(), info.dtype.name(), info.shape.as_slice(), &self.map[info.bytes.clone()])
        })
    }
}

#[cfg(test)]
mod tests;
