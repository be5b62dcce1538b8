//! The operations of a decoder in f32, for checking: plain kernels, not fast.

use super::{attention::window, check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// `hidden[token] = table[ids[token]]`, as [`super::Embed`].
#[derive(Debug, Clone, Copy)]
pub struct EmbedF32<'a> {
    /// [tokens, width]
    pub hidden: View<'a, f32>,
    /// [vocab, width]
    pub table: View<'a, f32>,
    pub ids: View<'a, u32>,
    pub slots: View<'a, u32>,
    pub last_tokens: View<'a, u32>,
    pub tokens: usize,
    pub width: usize,
}

/// `out[r] = rms_norm(hidden[rows[r]]) * weight`.
#[derive(Debug, Clone, Copy)]
pub struct NormF32<'a> {
    /// [count, width]
    pub out: View<'a, f32>,
    /// [any, width]
    pub hidden: View<'a, f32>,
    pub weight: View<'a, f32>,
    /// Which rows of `hidden`; `None`: the first `count`.
    pub rows: Option<View<'a, u32>>,
    pub count: usize,
    pub width: usize,
    pub eps: f32,
}

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

/// Keys and values of a layer, [pages, keys and values, kv_heads, page_size, head_dim].
#[derive(Debug, Clone, Copy)]
pub struct KvF32<'a> {
    pub pages: View<'a, f32>,
    pub kv_heads: usize,
    /// 64 or 128.
    pub head_dim: usize,
    /// A power of two.
    pub page_size: usize,
}

/// What follows the QKV projection, as [`super::QkvHead`].
#[derive(Debug, Clone, Copy)]
pub struct HeadsF32<'a> {
    /// [tokens, heads, head_dim]
    pub queries: View<'a, f32>,
    pub kv: KvF32<'a>,
    /// [tokens, (heads + 2 * kv_heads) * head_dim]
    pub qkv: View<'a, f32>,
    pub bias: Option<View<'a, f32>>,
    pub norms: Option<[View<'a, f32>; 2]>,
    pub cosines: View<'a, f32>,
    pub sines: View<'a, f32>,
    pub positions: View<'a, u32>,
    pub places: View<'a, u32>,
    pub tokens: usize,
    pub heads: usize,
    pub norm_width: usize,
    pub eps: f32,
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
    pub kv: KvF32<'a>,
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

impl KvF32<'_> {
    fn check(&self) -> Result<i32, CudaError> {
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
    pub fn embed_f32(&self, op: EmbedF32<'_>) -> Result<(), CudaError> {
        check_len("hidden", op.hidden, op.tokens * op.width)?;
        check_len("ids", op.ids, op.tokens)?;
        check_len("slots", op.slots, op.tokens)?;
        let arguments = arguments![op.hidden, op.table, op.ids, op.slots, op.last_tokens, op.width as i32];
        // SAFETY: signature of embed_f32; lengths checked, ids are trusted.
        unsafe { self.launch("embed_f32", Shape::new([op.tokens as u32, 1, 1], 128).alone(), arguments) }
    }

    pub fn norm_f32(&self, op: NormF32<'_>) -> Result<(), CudaError> {
        check_len("out", op.out, op.count * op.width)?;
        check_len("weight", op.weight, op.width)?;
        match op.rows {
            Some(rows) => check_len("rows", rows, op.count)?,
            None => check_len("hidden", op.hidden, op.count * op.width)?,
        }
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

    pub fn heads_f32(&self, op: HeadsF32<'_>) -> Result<(), CudaError> {
        let KvF32 { pages, kv_heads, head_dim, .. } = op.kv;
        let (page_shift, all) = (op.kv.check()?, op.heads + 2 * kv_heads);
        check_len("queries", op.queries, op.tokens * op.heads * head_dim)?;
        check_len("qkv", op.qkv, op.tokens * all * head_dim)?;
        check_len("positions", op.positions, op.tokens)?;
        check_len("places", op.places, op.tokens)?;
        if let Some(bias) = op.bias {
            check_len("bias", bias, all * head_dim)?;
        }
        for norm in op.norms.into_iter().flatten() {
            check_len("a norm of heads", norm, head_dim)?;
        }
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
            page_shift,
            head_dim as i32,
            op.norm_width as i32,
            op.eps,
        ];
        let grid = [(op.tokens * all).div_ceil(HEADS) as u32, 1, 1];
        // SAFETY: signature of heads_f32; lengths checked, positions and places are trusted.
        unsafe { self.launch("heads_f32", Shape::new(grid, 32 * HEADS as u32), arguments) }
    }

    pub fn attention_f32(&self, op: AttentionF32<'_>) -> Result<(), CudaError> {
        let KvF32 { pages, kv_heads, head_dim, .. } = op.kv;
        let page_shift = op.kv.check()?;
        check(kv_heads > 0 && op.heads.is_multiple_of(kv_heads), || {
            format!("{} heads over {kv_heads} key heads", op.heads)
        })?;
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
            page_shift,
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
