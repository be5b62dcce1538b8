//! Matrix products of activations with weights that stay packed as their file quantised them.
//!
//! `out = x · Wᵀ`, computed tile by tile (16 rows of `W`), so that threads share a product by splitting its
//! tiles. Each output is one sum in one fixed order, the same for any number of activation rows, any split,
//! and every [`Isa`]: the integer dot product of a block is exact, and the sums over blocks (or columns, for
//! float weights) are fused multiply-adds in ascending order.
//!
//! Quantised weights meet activations rounded to bytes, with one f32 scale per 32 columns; float weights meet
//! the activations as they are.

use std::ops::Range;

use formats::DType;
use models::Matrix;

mod acts;
mod arena;
mod float;
mod lanes;
mod layout;
mod pack;
mod prepare;
mod quantised;
mod sweep;

pub use acts::{Acts, ActsFormat};
pub use layout::TILE_ROWS;

use crate::Isa;
use pack::Segment;

/// What the weights become when they are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As the file has them.
    #[default]
    Packed,
    /// Dequantised to f32: exact, slow, the reference.
    F32,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("a matrix without elements")]
    Empty,
    #[error("stacked matrices have {first} and {other} columns")]
    Cols { first: usize, other: usize },
    #[error("{bytes} bytes are not a {rows} x {cols} matrix of {dtype}")]
    Bytes { dtype: DType, rows: usize, cols: usize, bytes: usize },
    #[error("no memory for weights")]
    Memory(#[from] std::io::Error),
}

/// A weight matrix, or several stacked by rows (query, key and value; gate and up), packed.
#[derive(Debug)]
pub struct Linear {
    isa: Isa,
    rows: usize,
    cols: usize,
    segments: Vec<Segment>,
}

impl Linear {
    /// Packs `parts`, stacked in this order. Parts may differ in dtype.
    ///
    /// # Errors
    /// If there are no elements, the columns differ, a part's bytes do not fit its shape, or memory is short.
    ///
    /// # Panics
    /// If this machine has not got `isa`.
    pub fn pack(parts: &[Matrix<'_>], isa: Isa, precision: Precision) -> Result<Self, PackError> {
        assert!(isa.is_available(), "{} is not available", isa.name());
        let segments = pack::pack(parts, precision)?;
        let rows = segments.iter().map(|segment| segment.rows).sum();
        Ok(Self { isa, rows, cols: parts[0].cols, segments })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Units of work of [`Self::apply`].
    pub fn tiles(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.tiles().end)
    }

    /// Bytes of the packed weights, all of which a product reads.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// The forms of activations that the weights meet.
    pub fn acts_format(&self) -> ActsFormat {
        self.segments.iter().fold(ActsFormat::default(), |format, segment| {
            let quantised = layout::quantised(segment.dtype).is_some();
            format.union(ActsFormat { quantised, float: !quantised })
        })
    }

    /// Computes the outputs of the tiles `tiles` for the activation rows `0..m`.
    ///
    /// # Safety
    /// Until this returns, `out` is valid, no other thread touches these outputs, and nobody prepares rows
    /// `0..m` of `acts`.
    ///
    /// # Panics
    /// If the shapes do not fit or `acts` has not got the form that the weights need.
    pub unsafe fn apply(&self, acts: &Acts, m: usize, out: OutPtr, tiles: Range<usize>) {
        assert!(m <= acts.rows() && self.cols == acts.cols(), "activations do not fit");
        assert_eq!(acts.format().union(self.acts_format()), acts.format(), "activations lack a form");
        assert!(out.fits(m, self.rows), "outputs do not fit");
        assert!(tiles.end <= self.tiles(), "tiles {tiles:?} of {}", self.tiles());
        for segment in &self.segments {
            let Range { start, end } = segment.tiles();
            let (from, to) = (tiles.start.max(start), tiles.end.min(end));
            if from < to && m > 0 {
                let job = lanes::Job { segment, cols: self.cols, acts, out };
                // SAFETY: `pack` has seen the instruction set; ranges are checked; the rest is the caller's
                // promise.
                unsafe { sweep::sweep(self.isa, &job, m, from - start..to - start) };
            }
        }
    }

    /// The weights of row `row` as f32: the embedding of a token, where the output head is the embedding
    /// matrix.
    ///
    /// # Panics
    /// If there is no such row or `out` is not as long as it.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} does not fit");
        let index = self.segments.partition_point(|segment| segment.first_row <= row) - 1;
        self.segments[index].read_row(row - self.segments[index].first_row, out);
    }
}

/// Where products are written: rows of `stride` f32, shared by threads that write different columns.
#[derive(Debug, Clone, Copy)]
pub struct OutPtr {
    start: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: only `Linear::apply` writes through it, whose callers promise that no two threads touch the same
// outputs.
unsafe impl Send for OutPtr {}
// SAFETY: as above.
unsafe impl Sync for OutPtr {}

impl OutPtr {
    /// Row `i` of the outputs begins at `out[i * stride]`.
    pub fn new(out: &mut [f32], stride: usize) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), stride }
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        cols <= self.stride && (rows == 0 || (rows - 1) * self.stride + cols <= self.len)
    }

    /// # Safety
    /// The place is in range.
    #[inline(always)]
    unsafe fn at(self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

#[cfg(test)]
mod tests;
