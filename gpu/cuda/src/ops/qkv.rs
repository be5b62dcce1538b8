use half::bf16;

use super::{KvView, LayerKv, check, check_len};
use crate::{
    CudaError, Device, Element, View,
    launch::{Shape, arguments},
};

/// What follows the QKV projection: bias, RMSNorm per head, rotary embedding; queries to `queries`, keys and values
/// into their pages.
#[derive(Debug, Clone, Copy)]
pub struct QkvHead<'a, T = bf16, P = KvView<'a>> {
    /// [tokens, heads, head_dim]
    pub queries: View<'a, T>,
    pub kv: LayerKv<P>,
    /// [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values
    pub qkv: View<'a, T>,
    /// [(heads + 2 * kv_heads) * head_dim]
    pub bias: Option<View<'a, T>>,
    /// Weights of the norm per query head and per key head, [head_dim].
    pub norms: Option<[View<'a, f32>; 2]>,
    /// [positions, head_dim / 2]
    pub cosines: View<'a, f32>,
    pub sines: View<'a, f32>,
    /// Absolute position of each token.
    pub positions: View<'a, u32>,
    /// Page times page size plus offset of each token; `u32::MAX` writes no keys and values.
    pub places: View<'a, u32>,
    pub tokens: usize,
    pub heads: usize,
    /// Elements of a head before it was padded to `head_dim`.
    pub norm_width: usize,
    pub eps: f32,
}

/// `HeadOutput` of qkv.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadOutput {
    queries: u64,
    pages: u64,
    bias: u64,
    norms: [u64; 2],
    cosines: u64,
    sines: u64,
    positions: u64,
    places: u64,
    heads: i32,
    kv_heads: i32,
    page_shift: i32,
    norm_width: i32,
    eps: f32,
}

impl<T: Element, P> QkvHead<'_, T, P> {
    /// Columns of the product.
    pub(super) fn width(&self) -> usize {
        (self.heads + 2 * self.kv.kv_heads) * self.kv.head_dim
    }

    /// Of all but `qkv`, which some kernels do without.
    pub(super) fn check(&self) -> Result<(), CudaError> {
        let head_dim = self.kv.head_dim;
        check([64, 128].contains(&head_dim), || format!("heads of {head_dim} elements"))?;
        check_len("queries", self.queries, self.tokens * self.heads * head_dim)?;
        check_len("positions", self.positions, self.tokens)?;
        check_len("places", self.places, self.tokens)?;
        check(self.bias.is_none_or(|bias| bias.len() >= self.width()), || "a bias for every row".into())?;
        check(self.norms.is_none_or(|norms| norms.iter().all(|n| n.len() >= head_dim)), || {
            "norms of a head's width".into()
        })
    }
}

impl QkvHead<'_> {
    /// What kernels are told; lengths are checked here.
    pub(super) fn output(&self) -> Result<HeadOutput, CudaError> {
        self.check()?;
        Ok(HeadOutput {
            queries: self.queries.address(),
            pages: self.kv.pages.address(),
            bias: self.bias.map_or(0, |bias| bias.address()),
            norms: self.norms.map_or([0; 2], |norms| norms.map(|norm| norm.address())),
            cosines: self.cosines.address(),
            sines: self.sines.address(),
            positions: self.positions.address(),
            places: self.places.address(),
            heads: self.heads as i32,
            kv_heads: self.kv.kv_heads as i32,
            page_shift: self.kv.page_shift()? as i32,
            norm_width: self.norm_width as i32,
            eps: self.eps,
        })
    }
}

const WARPS: usize = 8;

impl Device {
    pub fn qkv_head(&self, op: QkvHead<'_>) -> Result<(), CudaError> {
        let output = op.output()?;
        check_len("qkv", op.qkv, op.tokens * op.width())?;
        let kernel = match op.kv.head_dim {
            64 => op.kv.pages.kernel(["qkv_head_64", "qkv_head_64_fp8"]),
            _ => op.kv.pages.kernel(["qkv_head_128", "qkv_head_128_fp8"]),
        };
        let heads_per_warp = op.kv.head_dim / 32;
        let units = op.tokens * (op.heads + 2 * op.kv.kv_heads).div_ceil(heads_per_warp);
        let shape = Shape::new([units.div_ceil(WARPS) as u32, 1, 1], 32 * WARPS as u32);
        // SAFETY: signature of qkv_head; lengths checked, positions and places are trusted.
        unsafe { self.launch_mapped(kernel, shape, &[output], arguments![op.qkv, op.tokens as i32]) }
    }
}
