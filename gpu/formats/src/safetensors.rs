//! Hugging Face weight files: one `model.safetensors`, or shards listed in `model.safetensors.index.json`.

mod header;
mod index;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

pub use header::{Header, TensorInfo};

use crate::{
    DType, Tensor,
    error::{Error, ErrorKind, InFile},
    map::map_file,
};

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, mapped into memory. Headers are checked in full at open: every tensor lies inside
/// its file, fits its shape and overlaps no other.
#[derive(Debug)]
pub struct Safetensors {
    shards: Vec<Shard>,
    /// Name to (shard, its info).
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

impl Safetensors {
    /// Opens a `.safetensors` file, or the weights of a model folder.
    ///
    /// # Errors
    /// If a file is missing, malformed, or does not hold what the index promises.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Self::open_files(&[path.to_owned()]);
        }
        let single = path.join(SINGLE_FILE);
        let index = path.join(INDEX_FILE);
        if single.is_file() {
            Self::open_files(&[single])
        } else if index.is_file() {
            let index_of = index::read(&index)?;
            let files: Vec<_> = index_of.files().map(|name| path.join(name)).collect();
            let checkpoint = Self::open_files(&files)?;
            index_of.check(|tensor| checkpoint.file_of(tensor)).in_file(&index)?;
            Ok(checkpoint)
        } else {
            let help =
                format!("put the model's weights there, as {SINGLE_FILE} or as shards with {INDEX_FILE}");
            Err(ErrorKind::missing("weight file", help)).in_file(path)
        }
    }

    fn open_files(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut checkpoint = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for (shard, path) in paths.iter().enumerate() {
            let map = map_file(path)?;
            for (name, info) in Header::parse(&map).in_file(path)?.tensors {
                if checkpoint.tensors.contains_key(&name) {
                    return Err(ErrorKind::malformed(&name, "also in another shard")).in_file(path);
                }
                checkpoint.tensors.insert(name, (shard, info));
            }
            checkpoint.shards.push(Shard { path: path.clone(), map });
        }
        Ok(checkpoint)
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// If there is none, or its element type is none of [`DType`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let Some((shard, info)) = self.tensors.get(name) else {
            let help = "the weights are incomplete or of another architecture than config.json says";
            return Err(ErrorKind::missing(format!("tensor {name}"), help)).in_file(&self.shards[0].path);
        };
        let shard = &self.shards[*shard];
        match info.dtype {
            Some(dtype) => Ok(Tensor { dtype, shape: &info.shape, data: &shard.map[info.bytes.clone()] }),
            None => Err(ErrorKind::unsupported(name, format!("element type {}", info.stored_as)))
                .in_file(&shard.path),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Every tensor's name, stored type, shape and bytes, in order of names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &str, &[usize], &[u8])> + Clone {
        self.tensors.iter().map(|(name, (shard, info))| {
            let data = &self.shards[*shard].map[info.bytes.clone()];
            (name.as_str(), info.stored_as.as_str(), info.shape.as_slice(), data)
        })
    }

    fn file_of(&self, tensor: &str) -> Option<&str> {
        let (shard, _) = self.tensors.get(tensor)?;
        self.shards[*shard].path.file_name()?.to_str()
    }
}

fn dtype(stored: safetensors::Dtype) -> Option<DType> {
    Some(match stored {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        safetensors::Dtype::BF16 => DType::BF16,
        safetensors::Dtype::F8_E4M3 => DType::F8E4M3,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
