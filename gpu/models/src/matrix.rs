use std::borrow::Cow;

use formats::{DType, dequantise_row};

/// A weight as stored: row-major, one row per output feature; vectors have one row.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    /// `rows * row_bytes()` bytes, not necessarily aligned for their type. Borrowed from the mapped file unless the
    /// rows had to be put in another order.
    pub data: Cow<'a, [u8]>,
}

impl Matrix<'_> {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.rows
    }

    /// The stored bytes of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.data[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// Reads a row into `out`, which holds [`Matrix::cols`] elements.
    ///
    /// # Panics
    /// If there is no such row or `out` is of another length.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        dequantise_row(self.dtype, self.row(row), out);
    }

    /// All elements, row after row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.cols];
        for (row, out) in all.chunks_exact_mut(self.cols).enumerate() {
            self.row_to_f32(row, out);
        }
        all
    }
}
