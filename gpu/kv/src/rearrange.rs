//! Pages of one arrangement made pages of another.

use half::{bf16, f16, slice::HalfFloatSliceExt as _};

use crate::{Arrangement, KvDtype, PageLayout};

/// Elements converted at once.
const RUN: usize = 64;

/// How pages of one layout become pages of another: the same keys and values, rounded to the nearest where the new type
/// is narrower, in other places.
#[derive(Debug)]
pub struct Rearrangement {
    layers: usize,
    from: KvDtype,
    to: KvDtype,
    /// Elements of a layer of the old page.
    taken: usize,
    /// For each element of a layer of the new page where it is in the old one; `taken` where that has none.
    sources: Vec<u32>,
}

impl Rearrangement {
    /// From pages of `theirs` to pages of `ours`; `None` if they do not hold the same keys and values, or nobody knows
    /// where.
    pub fn new(theirs: &PageLayout, ours: &PageLayout) -> Option<Self> {
        let (from, to) = (theirs.arrangement()?, ours.arrangement()?);
        let same = theirs.revision == ours.revision
            && (theirs.page_size, theirs.layers) == (ours.page_size, ours.layers)
            && Arrangement { order: from.order, dtype: from.dtype, ..to } == from;
        same.then(|| Self::between(from, to, ours.page_size as usize, ours.layers as usize))
    }

    fn between(from: Arrangement, to: Arrangement, page_size: usize, layers: usize) -> Self {
        let taken = from.layer_elements(page_size);
        let mut sources = vec![taken as u32; to.layer_elements(page_size)];
        for head in 0..to.kv_heads as usize {
            for position in 0..page_size {
                let old = from.places(page_size, head, position);
                let new = to.places(page_size, head, position);
                let old = old.0.into_iter().chain(old.1);
                for (new, old) in new.0.into_iter().chain(new.1).zip(old) {
                    sources[new] = old as u32;
                }
            }
        }
        Self { layers, from: from.dtype, to: to.dtype, taken, sources }
    }

    /// Bytes of a new page.
    fn bytes(&self) -> usize {
        self.layers * self.sources.len() * self.to.bytes()
    }

    /// The new page.
    ///
    /// # Panics
    /// If `page` is not as long as an old one.
    pub fn page(&self, page: &[u8]) -> Vec<u8> {
        let layer_bytes = self.taken * self.from.bytes();
        assert_eq!(page.len(), self.layers * layer_bytes, "bytes of a page");
        let mut new = Vec::with_capacity(self.bytes());
        // One more, for places that nothing comes to.
        let mut old = vec![0.0; self.taken + 1];
        for layer in page.chunks_exact(layer_bytes) {
            read(self.from, layer, &mut old[..self.taken]);
            for sources in self.sources.chunks(RUN) {
                let mut run = [0.0; RUN];
                for (value, source) in run.iter_mut().zip(sources) {
                    *value = old[*source as usize];
                }
                write(self.to, &run[..sources.len()], &mut new);
            }
        }
        new
    }
}

/// Widens elements.
fn read(dtype: KvDtype, bytes: &[u8], to: &mut [f32]) {
    match dtype {
        KvDtype::F32 => {
            let (words, _) = bytes.as_chunks();
            to.iter_mut().zip(words).for_each(|(to, word)| *to = f32::from_le_bytes(*word));
        }
        KvDtype::Bf16 => {
            let (words, _) = bytes.as_chunks();
            to.iter_mut().zip(words).for_each(|(to, word)| *to = bf16::from_le_bytes(*word).to_f32());
        }
        KvDtype::F16 => {
            let (words, _) = bytes.as_chunks();
            for (to, words) in to.chunks_mut(RUN).zip(words.chunks(RUN)) {
                let mut run = [f16::ZERO; RUN];
                run.iter_mut().zip(words).for_each(|(half, word)| *half = f16::from_le_bytes(*word));
                run[..to.len()].convert_to_f32_slice(to);
            }
        }
    }
}

/// Rounds at most [`RUN`] elements and appends them.
fn write(dtype: KvDtype, values: &[f32], to: &mut Vec<u8>) {
    match dtype {
        KvDtype::F32 => values.iter().for_each(|value| to.extend(value.to_le_bytes())),
        KvDtype::Bf16 => values.iter().for_each(|value| to.extend(bf16::from_f32(*value).to_le_bytes())),
        KvDtype::F16 => {
            let mut run = [f16::ZERO; RUN];
            let halves = &mut run[..values.len()];
            halves.convert_from_f32_slice(values);
            halves.iter().for_each(|half| to.extend(half.to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests;
