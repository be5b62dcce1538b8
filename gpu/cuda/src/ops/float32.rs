//! The operations of a decoder in f32, for checking: plain kernels, not fast.

use super::{Embed, LayerKv, QkvHead, RmsNorm, attention::window, check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// `out = x wᵀ`, or `out += x wᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct GemmF32<'a> {
    /// [m, n]
    pub out: View<'a, f32>,
    /// [m, k]
    pub x: View<'a, f32>,
    /// [n, k]
    pub w: View<'a, f32>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub add: bool,
}

/// `gated = silu(gate) * up`.
#[derive(Debug, Clone, Copy)]
pub struct GateF32<'a> {
    /// [tokens, intermediate]
    pub gated: View<'a, f32>,
    /// [tokens, gates and then ups, intermediate]
    pub both: View<'a, f32>,
    pub tokens: usize,
    pub intermediate: usize,
}

/// Which rows of a step belong to which sequence.
#[derive(Debug, Clone, Copy)]
pub struct Several<'a> {
    pub firsts: View<'a, u32>,
    pub counts: View<'a, u32>,
    /// The largest count, at most.
    pub most: usize,
}

/// Attention of sequences over all that they see.
#[derive(Debug, Clone, Copy)]
pub struct AttentionF32<'a> {
    /// [tokens, heads, head_dim]
    pub out: View<'a, f32>,
    pub queries: View<'a, f32>,
    pub kv: LayerKv<View<'a, f32>>,
    pub tables: View<'a, u32>,
    pub table_starts: View<'a, u32>,
    /// Of each row.
    pub positions: View<'a, u32>,
    pub sequences: usize,
    /// `None`: sequence `i` is row `i`.
    pub several: Option<Several<'a>>,
    pub heads: usize,
    pub window: Option<u32>,
    pub scale: f32,
}

impl LayerKv<View<'_, f32>> {
    fn page_shift(&self) -> Result<i32, CudaError> {
        check([64, 128].contains(&self.head_dim), || format!("heads of {} elements", self.head_dim))?;
        check(self.page_size.is_power_of_two(), || format!("pages of {} tokens", self.page_size))?;
        Ok(self.page_size.trailing_zeros() as i32)
    }
}

/// Rows and columns of a tile of a product.
const TILE: usize = 64;
/// Heads that a block takes.
const HEADS: usize = 8;

impl Device {
    pub fn embed_f32(&self, op: Embed<'_, f32>) -> Result<(), CudaError> {
        op.check()?;
        check(op.next.is_none(), || "a norm behind an embedding in f32".into())?;
        let arguments = arguments![op.hidden, op.table, op.ids, op.slots, op.last_tokens, op.width as i32];
        // SAFETY: signature of embed_f32; lengths checked, ids are trusted.
        unsafe { self.launch("embed_f32", Shape::new([op.tokens as u32, 1, 1], 128).alone(), arguments) }
    }

    pub fn norm_f32(&self, op: RmsNorm<'_, f32>) -> Result<(), CudaError> {
        op.check()?;
        check(op.scales.is_none(), || "scales of rows in f32".into())?;
        let arguments = arguments![op.out, op.hidden, op.weight, op.rows, op.width as i32, op.eps];
        // SAFETY: signature of norm_f32; lengths checked, row numbers are trusted.
        unsafe { self.launch("norm_f32", Shape::new([op.count as u32, 1, 1], 256), arguments) }
    }

    pub fn gemm_f32(&self, op: GemmF32<'_>) -> Result<(), CudaError> {
        check_len("out", op.out, op.m * op.n)?;
        check_len("x", op.x, op.m * op.k)?;
        check_len("w", op.w, op.n * op.k)?;
        let [m, n, k] = [op.m, op.n, op.k].map(|size| size as i32);
        let grid = [op.n.div_ceil(TILE) as u32, op.m.div_ceil(TILE) as u32, 1];
        let arguments = arguments![op.out, op.x, op.w, m, n, k, i32::from(op.add)];
        // SAFETY: signature of gemm_f32; lengths checked.
        unsafe { self.launch("gemm_f32", Shape::new(grid, 256), arguments) }
    }

    pub fn gate_f32(&self, op: GateF32<'_>) -> Result<(), CudaError> {
        check_len("gated", op.gated, op.tokens * op.intermediate)?;
        check_len("both", op.both, 2 * op.tokens * op.intermediate)?;
        let arguments = arguments![op.gated, op.both, op.intermediate as i32];
        // SAFETY: signature of gate_f32; lengths checked.
        unsafe { self.launch("gate_f32", Shape::new([op.tokens as u32, 1, 1], 256), arguments) }
    }

    pub fn heads_f32(&self, op: QkvHead<'_, f32, View<'_, f32>>) -> Result<(), CudaError> {
        op.check()?;
        check_len("qkv", op.qkv, op.tokens * op.width())?;
        let LayerKv { pages, kv_heads, head_dim, .. } = op.kv;
        let arguments = arguments![
            op.queries,
            pages,
            op.qkv,
            op.bias,
            op.norms.map(|[queries, _]| queries),
            op.norms.map(|[_, keys]| keys),
            op.cosines,
            op.sines,
            op.positions,
            op.places,
            op.tokens as i32,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()?,
            head_dim as i32,
            op.norm_width as i32,
            op.eps,
        ];
        let grid = [(op.tokens * (op.heads + 2 * kv_heads)).div_ceil(HEADS) as u32, 1, 1];
        // SAFETY: signature of heads_f32; lengths checked, positions and places are trusted.
        unsafe { self.launch("heads_f32", Shape::new(grid, 32 * HEADS as u32), arguments) }
    }

    pub fn attention_f32(&self, op: AttentionF32<'_>) -> Result<(), CudaError> {
        let LayerKv { pages, kv_heads, head_dim, .. } = op.kv;
        op.kv.check(op.heads)?;
        check_len("out", op.out, op.positions.len() * op.heads * head_dim)?;
        check_len("queries", op.queries, op.positions.len() * op.heads * head_dim)?;
        check_len("table starts", op.table_starts, op.sequences)?;
        if let Some(several) = op.several {
            check_len("first rows", several.firsts, op.sequences)?;
            check_len("numbers of rows", several.counts, op.sequences)?;
        }
        let arguments = arguments![
            op.out,
            op.queries,
            pages,
            op.tables,
            op.table_starts,
            op.several.map(|several| several.firsts),
            op.several.map(|several| several.counts),
            op.positions,
            op.heads as i32,
            kv_heads as i32,
            op.kv.page_shift()?,
            window(op.window),
            head_dim as i32,
            op.scale,
        ];
        let rows = op.several.map_or(1, |several| several.most);
        let grid = [rows as u32, op.heads as u32, op.sequences as u32];
        // SAFETY: signature of attention_f32; lengths checked, tables, rows and positions are trusted.
        unsafe { self.launch("attention_f32", Shape::new(grid, 128), arguments) }
    }
}
