use half::bf16;

use super::{check, check_len};
use crate::{
    CudaError, Device, Element, View,
    launch::{Shape, arguments},
    sizes::MAX_NORM_WIDTH,
};

/// `hidden[token] = table[ids[token]]`, the first launch of a step. An id of [`models::PLACEHOLDER`] takes `last_tokens[slots[token]]`.
#[derive(Debug, Clone, Copy)]
pub struct Embed<'a, T = bf16> {
    /// [tokens, width]
    pub hidden: View<'a, f32>,
    /// [vocab, width]
    pub table: View<'a, T>,
    pub ids: View<'a, u32>,
    pub slots: View<'a, u32>,
    pub last_tokens: View<'a, u32>,
    /// The norm that follows, left half done.
    pub next: Option<NextNorm<'a>>,
    pub tokens: usize,
    /// A multiple of 8.
    pub width: usize,
}

/// The first half of the norm that follows rows of `width` elements; the product that takes them does the second
/// ([`super::RowScale`]).
#[derive(Debug, Clone, Copy)]
pub struct NextNorm<'a> {
    /// [width]
    pub weight: View<'a, f32>,
    /// [rows, width]: rows times `weight`.
    pub weighed: View<'a, bf16>,
    /// [rows, width / 8]: sums of squares of the rows.
    pub squares: View<'a, f32>,
}

impl NextNorm<'_> {
    pub(super) fn check(&self, rows: usize, width: usize) -> Result<(), CudaError> {
        check_len("weight", self.weight, width)?;
        check_len("weighed", self.weighed, rows * width)?;
        check_len("squares", self.squares, rows * width / 8)
    }
}

/// `out[r] = rms_norm(hidden[rows[r]]) * weight`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a, T = bf16> {
    /// [count, width]
    pub out: View<'a, T>,
    /// [any, width]
    pub hidden: View<'a, f32>,
    pub weight: View<'a, f32>,
    /// Which rows of `hidden`; `None`: the first `count`.
    pub rows: Option<View<'a, u32>>,
    /// [count]: takes what rows are to be scaled by, in place of scaling them here.
    pub scales: Option<View<'a, f32>>,
    pub count: usize,
    /// A multiple of 8.
    pub width: usize,
    pub eps: f32,
}

/// Copies rows of the residual stream and of what attention made of them, from the first view of a pair to the second.
#[derive(Debug, Clone, Copy)]
pub struct GatherRows<'a> {
    /// [any, hidden_width], [count, hidden_width]
    pub hidden: [View<'a, f32>; 2],
    /// [any, attended_width], [count, attended_width]
    pub attended: [View<'a, bf16>; 2],
    /// Which.
    pub rows: View<'a, u32>,
    pub count: usize,
    /// Multiples of 8.
    pub hidden_width: usize,
    pub attended_width: usize,
}

/// Copies pages in all layers.
#[derive(Debug, Clone, Copy)]
pub struct CopyPages<'a> {
    /// [layers, pages, page_bytes]
    pub kv: View<'a, u8>,
    /// From, to, from, to, …; no page is both.
    pub pairs: View<'a, u32>,
    pub count: usize,
    pub layers: usize,
    /// A multiple of 16.
    pub page_bytes: usize,
}

impl<T: Element> Embed<'_, T> {
    pub(super) fn check(&self) -> Result<(), CudaError> {
        check_len("hidden", self.hidden, self.tokens * self.width)?;
        check_len("ids", self.ids, self.tokens)?;
        check_len("slots", self.slots, self.tokens)
    }
}

impl<T: Element> RmsNorm<'_, T> {
    pub(super) fn check(&self) -> Result<(), CudaError> {
        check_len("out", self.out, self.count * self.width)?;
        check_len("weight", self.weight, self.width)?;
        match self.rows {
            Some(rows) => check_len("rows", rows, self.count),
            None => check_len("hidden", self.hidden, self.count * self.width),
        }
    }
}

const COPY_BLOCKS: u32 = 8;

impl Device {
    pub fn embed(&self, op: Embed<'_>) -> Result<(), CudaError> {
        check(op.width.is_multiple_of(8), || format!("an embedding of width {}", op.width))?;
        op.check()?;
        if let Some(next) = op.next {
            next.check(op.tokens, op.width)?;
        }
        let arguments = arguments![
            op.hidden,
            op.table,
            op.ids,
            op.slots,
            op.last_tokens,
            op.next.map(|next| next.weight),
            op.next.map(|next| next.weighed),
            op.next.map(|next| next.squares),
            op.width as i32,
        ];
        let shape = Shape::new([op.tokens as u32, 1, 1], 128).alone();
        // SAFETY: signature of embed; it writes `tokens` rows of `hidden`, ids are trusted.
        unsafe { self.launch("embed", shape, arguments) }
    }

    pub fn rms_norm(&self, op: RmsNorm<'_>) -> Result<(), CudaError> {
        check(op.width.is_multiple_of(8) && op.width <= MAX_NORM_WIDTH, || {
            format!("a norm of width {}", op.width)
        })?;
        op.check()?;
        if let Some(scales) = op.scales {
            check_len("scales", scales, op.count)?;
        }
        let arguments = arguments![op.out, op.hidden, op.weight, op.rows, op.scales, op.width as i32, op.eps];
        let threads = (op.width / 8).next_multiple_of(32) as u32;
        let shape = Shape::new([op.count as u32, 1, 1], threads);
        // SAFETY: signature of rms_norm; lengths checked, row numbers are trusted.
        unsafe { self.launch("rms_norm", shape, arguments) }
    }

    pub fn gather_rows(&self, op: GatherRows<'_>) -> Result<(), CudaError> {
        let GatherRows { hidden, attended, count, hidden_width, attended_width, .. } = op;
        check(hidden_width.is_multiple_of(8) && attended_width.is_multiple_of(8), || {
            format!("rows of {hidden_width} and {attended_width}")
        })?;
        check_len("rows", op.rows, count)?;
        check_len("hidden", hidden[1], count * hidden_width)?;
        check_len("attended", attended[1], count * attended_width)?;
        let words = [hidden_width / 4, attended_width / 8].map(|words| words as i32);
        let arguments =
            arguments![hidden[1], hidden[0], words[0], attended[1], attended[0], words[1], op.rows];
        // SAFETY: signature of gather_rows; lengths checked, row numbers are trusted.
        unsafe { self.launch("gather_rows", Shape::new([count as u32, 1, 1], 256), arguments) }
    }

    pub fn copy_pages(&self, op: CopyPages<'_>) -> Result<(), CudaError> {
        check(op.page_bytes.is_multiple_of(16), || format!("pages of {} bytes", op.page_bytes))?;
        check_len("pairs", op.pairs, 2 * op.count)?;
        check(op.layers > 0 && op.kv.len().is_multiple_of(op.layers), || "whole layers".into())?;
        let layer_words = op.kv.len() / op.layers / 16;
        let arguments = arguments![op.kv, op.pairs, (op.page_bytes / 16) as u64, layer_words as u64];
        let grid = [COPY_BLOCKS, op.count as u32, op.layers as u32];
        // SAFETY: signature of copy_pages; page numbers are trusted.
        unsafe { self.launch("copy_pages", Shape::new(grid, 256), arguments) }
    }
}
