use std::fmt;

use serde::{Deserialize, Serialize};

/// Weights up to this size are hashed in full.
const FULL_BYTES: usize = 128 << 20;
/// Of larger weights, tensors up to this size are hashed in full …
const SMALL_TENSOR_BYTES: usize = 64 << 10;
/// … and of the others this many chunks, the first and last bytes among them.
const CHUNKS: usize = 16;
const CHUNK_BYTES: usize = 4 << 10;

/// Identifies what a model computes and how text becomes tokens: 256 bits of BLAKE3 in hex.
///
/// It covers, each with its length: the configuration (config.json, or the whole GGUF header), tokenizer.json, the
/// chat templates, the ids that end a choice; and of every tensor, in order of names, its name, type, shape and
/// data. All data is hashed while the weights take no more than 128 MiB. Beyond that a tensor of more than 64 KiB
/// counts by 16 chunks of 4 KiB spread evenly over it, so that start-up does not read the weights twice. This tells
/// trained checkpoints apart, which differ everywhere; it does not withstand someone who edits between the chunks.
/// How tensors are spread over shards does not matter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(String);

impl Revision {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes in the parts of a model, in an order that the caller fixes.
pub(crate) struct Hasher(blake3::Hasher);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(blake3::Hasher::new())
    }

    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }

    /// `tensors`: name, type, shape and data of each, in order of names.
    pub(crate) fn weights<'a>(
        &mut self,
        tensors: impl Iterator<Item = (&'a str, &'a str, &'a [usize], &'a [u8])> + Clone,
    ) {
        let total: usize = tensors.clone().map(|(.., data)| data.len()).sum();
        for (name, dtype, shape, data) in tensors {
            self.part(name.as_bytes());
            self.part(dtype.as_bytes());
            self.part(format!("{shape:?}").as_bytes());
            if total <= FULL_BYTES || data.len() <= SMALL_TENSOR_BYTES {
                self.part(data);
            } else {
                let last = data.len() - CHUNK_BYTES;
                (0..CHUNKS).for_each(|i| self.part(&data[chunk_start(last, i)..][..CHUNK_BYTES]));
            }
        }
    }

    pub(crate) fn finish(self) -> Revision {
        Revision(self.0.finalize().to_hex().to_string())
    }
}

/// Chunk `i` starts here; the last one ends with the tensor.
fn chunk_start(last: usize, i: usize) -> usize {
    (last as u128 * i as u128 / (CHUNKS - 1) as u128) as usize
}

#[cfg(test)]
mod tests;
