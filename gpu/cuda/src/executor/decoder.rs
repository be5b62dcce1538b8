//! A decoder on its device.

use half::bf16;

use super::{buffers::Buffers, config::KvFormat, dimensions::Dimensions, weights::Weights};
use crate::{
    Buffer, View,
    ops::{KvPages, KvView},
};

/// What every way through a step is made of.
#[derive(Debug)]
pub(super) struct Decoder {
    pub dimensions: Dimensions,
    pub weights: Weights,
    pub buffers: Buffers,
    /// [layers, pages, keys and values, kv_heads, page_size, head_dim]
    pub kv: Buffer<u8>,
    pub kv_format: KvFormat,
    pub page_size: usize,
    /// Of a page of one layer.
    pub page_bytes: usize,
}

impl Decoder {
    /// The pages of a layer.
    pub fn layer(&self, number: usize) -> View<'_, u8> {
        let layer_len = self.kv.len() / self.dimensions.layers;
        self.kv.slice(number * layer_len..(number + 1) * layer_len)
    }

    /// Keys and values of a layer.
    pub fn kv_pages(&self, number: usize) -> KvPages<'_> {
        let Dimensions { kv_heads, head_dim, .. } = self.dimensions;
        let pages = self.layer(number);
        KvPages {
            pages: match self.kv_format {
                KvFormat::Bf16 => KvView::Bf16(pages.cast()),
                KvFormat::Fp8E4m3 => KvView::Fp8(pages),
            },
            kv_heads,
            head_dim,
            page_size: self.page_size,
        }
    }

    /// Where weights in FP8 are unpacked.
    pub fn room(&self) -> Option<View<'_, bf16>> {
        self.buffers.unpacked.as_ref().map(Buffer::view)
    }
}
