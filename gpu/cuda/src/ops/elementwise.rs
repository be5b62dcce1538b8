use half::bf16;

use super::{check, check_len};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// `hidden[token] = table[ids[token]]`. An id of [`models::PLACEHOLDER`] takes `last_tokens[slots[token]]`.
#[derive(Debug, Clone, Copy)]
pub struct Embed<'a> {
    /// [tokens, width]
    pub hidden: View<'a, f32>,
    /// [vocab, width]
    pub table: View<'a, bf16>,
    pub ids: View<'a, u32>,
    pub slots: View<'a, u32>,
    pub last_tokens: View<'a, u32>,
    pub tokens: usize,
    /// A multiple of 8.
    pub width: usize,
}

/// `out[r] = rms_norm(hidden[rows[r]] + delta[rows[r]]) * weight`; the sum stays in `hidden`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// [count, width]
    pub out: View<'a, bf16>,
    /// [any, width]
    pub hidden: View<'a, f32>,
    pub delta: Option<View<'a, bf16>>,
    pub weight: View<'a, f32>,
    /// Which rows of `hidden`; `None`: the first `count`.
    pub rows: Option<View<'a, u32>>,
    pub count: usize,
    /// A multiple of 4.
    pub width: usize,
    pub eps: f32,
}

/// `out[r, i] = silu(gate) * up` of rows that interleave gate and up.
#[derive(Debug, Clone, Copy)]
pub struct SiluMul<'a> {
    /// [rows, width]
    pub out: View<'a, bf16>,
    /// [rows, 2 * width]: gate 0, up 0, gate 1, up 1, …
    pub gate_up: View<'a, bf16>,
    pub rows: usize,
    /// A multiple of 4.
    pub width: usize,
}

/// Copies pages in all layers.
#[derive(Debug, Clone, Copy)]
pub struct CopyPages<'a> {
    /// [layers, pages, elements of a page]
    pub kv: View<'a, bf16>,
    /// From, to, from, to, …; no page is both.
    pub pairs: View<'a, u32>,
    pub count: usize,
    pub layers: usize,
    pub page_elements: usize,
}

const COPY_BLOCKS: u32 = 8;

impl Device {
    pub fn embed(&self, op: Embed<'_>) -> Result<(), CudaError> {
        check(op.width.is_multiple_of(8), || format!("an embedding of width {}", op.width))?;
        check_len("hidden", op.hidden, op.tokens * op.width)?;
        check_len("ids", op.ids, op.tokens)?;
        check_len("slots", op.slots, op.tokens)?;
        let arguments = arguments![op.hidden, op.table, op.ids, op.slots, op.last_tokens, op.width as i32];
        // SAFETY: signature of embed; it writes `tokens` rows of `hidden`, ids are trusted.
        unsafe { self.launch("embed", Shape::new([op.tokens as u32, 1, 1], 128), arguments) }
    }

    pub fn rms_norm(&self, op: RmsNorm<'_>) -> Result<(), CudaError> {
        check(op.width.is_multiple_of(4), || format!("a norm of width {}", op.width))?;
        check_len("out", op.out, op.count * op.width)?;
        check_len("weight", op.weight, op.width)?;
        match op.rows {
            Some(rows) => check_len("rows", rows, op.count)?,
            None => check_len("hidden", op.hidden, op.count * op.width)?,
        }
        let arguments = arguments![op.out, op.hidden, op.delta, op.weight, op.rows, op.width as i32, op.eps];
        // SAFETY: signature of rms_norm; lengths checked, row numbers are trusted.
        unsafe { self.launch("rms_norm", Shape::new([op.count as u32, 1, 1], 256), arguments) }
    }

    pub fn silu_mul(&self, op: SiluMul<'_>) -> Result<(), CudaError> {
        check(op.width.is_multiple_of(4), || format!("a gate of width {}", op.width))?;
        check_len("out", op.out, op.rows * op.width)?;
        check_len("gate_up", op.gate_up, 2 * op.rows * op.width)?;
        let groups = op.rows * op.width / 4;
        let arguments = arguments![op.out, op.gate_up, groups as u64];
        // SAFETY: signature of silu_mul; lengths checked.
        unsafe { self.launch("silu_mul", Shape::new([groups.div_ceil(256) as u32, 1, 1], 256), arguments) }
    }

    pub fn copy_pages(&self, op: CopyPages<'_>) -> Result<(), CudaError> {
        check(op.page_elements.is_multiple_of(8), || format!("pages of {} elements", op.page_elements))?;
        check_len("pairs", op.pairs, 2 * op.count)?;
        check(op.layers > 0 && op.kv.len().is_multiple_of(op.layers), || "whole layers".into())?;
        let layer_words = op.kv.len() / op.layers / 8;
        let arguments = arguments![op.kv, op.pairs, (op.page_elements / 8) as u64, layer_words as u64];
        let grid = [COPY_BLOCKS, op.count as u32, op.layers as u32];
        // SAFETY: signature of copy_pages; page numbers are trusted.
        unsafe { self.launch("copy_pages", Shape::new(grid, 256), arguments) }
    }
}
