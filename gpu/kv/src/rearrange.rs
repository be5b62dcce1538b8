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

    /// The new page.
    ///
    /// # Panics
    /// If `page` is not as long as an old one.
    pub fn page(&self, page: &[u8]) -> Vec<u8> {
        let [old_bytes, new_bytes] =
            [(self.taken, self.from), (self.sources.len(), self.to)].map(|(len, dtype)| len * dtype.bytes());
        assert_eq!(page.len(), self.layers * old_bytes, "bytes of a page");
        let mut made = vec![0; self.layers * new_bytes];
        // One more, for places that nothing comes to.
        let mut old = vec![0.0; self.taken + 1];
        let mut new = vec![0.0; self.sources.len()];
        for (from, to) in page.chunks_exact(old_bytes).zip(made.chunks_exact_mut(new_bytes)) {
            read(self.from, from, &mut old[..self.taken]);
            for (value, source) in new.iter_mut().zip(&self.sources) {
                *value = old[*source as usize];
            }
            write(self.to, &new, to);
        }
        made
    }
}

/// Widens elements.
fn read(dtype: KvDtype, bytes: &[u8], to: &mut [f32]) {
    match dtype {
        KvDtype::F32 => each(bytes, to, |word, to| *to = f32::from_le_bytes(*word)),
        KvDtype::Bf16 => each(bytes, to, |word, to| *to = bf16::from_le_bytes(*word).to_f32()),
        KvDtype::F16 => {
            for (bytes, to) in bytes.chunks(2 * RUN).zip(to.chunks_mut(RUN)) {
                let mut run = [f16::ZERO; RUN];
                each(bytes, &mut run, |word, half| *half = f16::from_le_bytes(*word));
                run[..to.len()].convert_to_f32_slice(to);
            }
        }
    }
}

/// Calls `with` for each word and what stands for it.
fn each<const N: usize, T>(bytes: &[u8], elements: &mut [T], with: impl Fn(&[u8; N], &mut T)) {
    let (words, _) = bytes.as_chunks();
    words.iter().zip(elements).for_each(|(word, element)| with(word, element));
}

/// Rounds elements.
fn write(dtype: KvDtype, values: &[f32], to: &mut [u8]) {
    match dtype {
        KvDtype::F32 => {
            let (words, _) = to.as_chunks_mut();
            words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_le_bytes());
        }
        KvDtype::Bf16 => {
            let (words, _) = to.as_chunks_mut();
            let round = |value: &f32| bf16::from_f32(*value).to_le_bytes();
            words.iter_mut().zip(values).for_each(|(word, value)| *word = round(value));
        }
        KvDtype::F16 => {
            let (words, _) = to.as_chunks_mut();
            for (words, values) in words.chunks_mut(RUN).zip(values.chunks(RUN)) {
                let mut run = [f16::ZERO; RUN];
                run[..values.len()].convert_from_f32_slice(values);
                words.iter_mut().zip(run).for_each(|(word, half)| *word = half.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
