mod decode;
mod prefill;

use half::bf16;

pub use decode::{DecodeAttention, DecodeShare, decode_tickets, part_stats};
pub use prefill::PrefillAttention;

use super::check;
use crate::{CudaError, View, sizes::TILE_KEYS, tensor_map::TensorMap};

/// Query heads that may share a key head.
pub(super) const MAX_GROUP: usize = 16;
/// A tile has at most half as many pages as a warp has lanes: a page's row may be two of the copy engine's.
const MIN_PAGE_SIZE: usize = TILE_KEYS / 16;

/// The pages of a layer, by the type of their elements.
#[derive(Debug, Clone, Copy)]
pub enum KvView<'a> {
    Bf16(View<'a, bf16>),
    /// FP8 E4M3, packed in runs of 16 elements of a head.
    Fp8(View<'a, u8>),
}

impl<'a> From<View<'a, bf16>> for KvView<'a> {
    fn from(view: View<'a, bf16>) -> Self {
        Self::Bf16(view)
    }
}

impl KvView<'_> {
    /// Elements.
    fn len(&self) -> usize {
        match self {
            Self::Bf16(pages) => pages.len(),
            Self::Fp8(pages) => pages.len(),
        }
    }

    pub(super) fn address(&self) -> u64 {
        match self {
            Self::Bf16(pages) => pages.address(),
            Self::Fp8(pages) => pages.address(),
        }
    }

    /// Which of the kernels for bf16 and for FP8 takes them.
    pub(super) fn kernel(&self, kernels: [&'static str; 2]) -> &'static str {
        match self {
            Self::Bf16(_) => kernels[0],
            Self::Fp8(_) => kernels[1],
        }
    }

    /// Boxes of rows, which are the elements of a head at one position.
    pub(super) fn map(&self, head_dim: usize, box_rows: usize) -> Result<TensorMap, CudaError> {
        match self {
            Self::Bf16(pages) => TensorMap::new(*pages, [pages.len() / head_dim, head_dim], box_rows),
            Self::Fp8(pages) => TensorMap::of_rows(*pages, [pages.len() / head_dim, head_dim], box_rows),
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerKv<P> {
    /// [pages, keys and values, kv_heads, page_size, head_dim]
    pub pages: P,
    pub kv_heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// A power of two, at least 8 but in f32.
    pub page_size: usize,
}

/// Those of layers that compute in bf16.
pub type KvPages<'a> = LayerKv<KvView<'a>>;

impl KvPages<'_> {
    /// Rows of a head at a position in each of `layers` layers.
    pub(super) fn layer_rows(&self, layers: usize) -> usize {
        self.pages.len() / self.head_dim / layers
    }

    pub(super) fn page_shift(&self) -> Result<u32, CudaError> {
        check(self.page_size.is_power_of_two() && self.page_size >= MIN_PAGE_SIZE, || {
            format!("pages of {} tokens", self.page_size)
        })?;
        Ok(self.page_size.trailing_zeros())
    }
}

/// Kernels take scores in units of log2.
pub(super) fn log2_scale(scale: f32) -> f32 {
    scale * std::f32::consts::LOG2_E
}

pub(super) fn window(window: Option<u32>) -> i32 {
    window.map_or(i32::MAX, |window| window.min(i32::MAX as u32) as i32)
}

impl<P> LayerKv<P> {
    pub(super) fn check(&self, heads: usize) -> Result<(), CudaError> {
        check(self.kv_heads > 0 && heads.is_multiple_of(self.kv_heads), || {
            format!("{heads} heads over {} key heads", self.kv_heads)
        })
    }
}
