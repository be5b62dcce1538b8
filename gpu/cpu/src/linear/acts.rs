use std::cell::UnsafeCell;

use super::layout::BLOCK;
use crate::Isa;

/// Rows of activations that lie interleaved, so that a kernel reads all of them at constant distances.
pub(super) const PANEL: usize = 8;

/// Which forms of the activations a [`super::Linear`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActsFormat {
    /// Bytes with a scale per 32 columns, for quantised weights.
    pub quantised: bool,
    /// As they are, for float weights.
    pub float: bool,
}

impl ActsFormat {
    /// What serves both.
    pub fn union(self, other: Self) -> Self {
        Self { quantised: self.quantised || other.quantised, float: self.float || other.float }
    }
}

/// 32 columns of a panel: value = `scale * q`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct ActBlock {
    pub q: [[i8; BLOCK]; PANEL],
    /// Largest magnitude of the block / 127.
    pub scale: [f32; PANEL],
    /// `scale` times the sum of `q`.
    pub sum: [f32; PANEL],
    /// The same of columns 0..16 and 16..32.
    pub half_sum: [[f32; PANEL]; 2],
}

impl ActBlock {
    const ZERO: Self =
        Self { q: [[0; BLOCK]; PANEL], scale: [0.0; PANEL], sum: [0.0; PANEL], half_sum: [[0.0; PANEL]; 2] };
}

/// Activations as the kernels read them: a scratch of `rows × cols`, allocated once and filled in every step.
///
/// Several threads may fill disjoint rows at once; see [`Self::prepare`].
#[derive(Debug)]
pub struct Acts {
    rows: usize,
    cols: usize,
    pub(super) isa: Isa,
    format: ActsFormat,
    /// Panel after panel, block after block.
    pub(super) blocks: Box<[UnsafeCell<ActBlock>]>,
    /// Panel after panel, column after column.
    pub(super) floats: Box<[UnsafeCell<[f32; PANEL]>]>,
}

// SAFETY: the cells are written by [`Acts::prepare`] alone, whose callers promise to keep writers and readers apart.
unsafe impl Sync for Acts {}

impl Acts {
    /// Room for `rows` rows of `cols` columns in the forms of `format`.
    ///
    /// # Panics
    /// If `format.quantised` and `cols` is not a multiple of 32.
    pub fn new(rows: usize, cols: usize, format: ActsFormat, isa: Isa) -> Self {
        assert!(!format.quantised || cols.is_multiple_of(BLOCK), "{cols} columns are not whole blocks");
        let panels = rows.div_ceil(PANEL);
        let blocks = if format.quantised { panels * cols / BLOCK } else { 0 };
        let floats = if format.float { panels * cols } else { 0 };
        Self {
            rows,
            cols,
            isa,
            format,
            blocks: (0..blocks).map(|_| UnsafeCell::new(ActBlock::ZERO)).collect(),
            floats: (0..floats).map(|_| UnsafeCell::new([0.0; PANEL])).collect(),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn format(&self) -> ActsFormat {
        self.format
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.blocks) + size_of_val(&*self.floats)
    }

    /// First block of a panel.
    pub(super) fn panel_blocks(&self, panel: usize) -> *const ActBlock {
        UnsafeCell::raw_get(self.blocks[panel * (self.cols / BLOCK)..].as_ptr())
    }

    /// First column of a panel.
    pub(super) fn panel_floats(&self, panel: usize) -> *const [f32; PANEL] {
        UnsafeCell::raw_get(self.floats[panel * self.cols..].as_ptr())
    }
}
