use std::borrow::Cow;

use formats::{DType, dequantise_row, fp8::SCALE_BLOCK};
use half::bf16;

/// A weight as stored: row-major, one row per output feature; vectors have one row.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    /// `rows * row_bytes()` bytes, not necessarily aligned for their type. Borrowed from the mapped file unless the
    /// rows had to be put in another order.
    pub data: Cow<'a, [u8]>,
    /// What the elements are multiplied by, of an FP8 matrix.
    pub scales: Option<BlockScales>,
}

/// A scale for each block of 128 x 128 elements of a matrix: [ceil(rows / 128), ceil(cols / 128)].
#[derive(Debug, Clone, PartialEq)]
pub struct BlockScales {
    pub values: Vec<f32>,
    /// Blocks side by side.
    pub cols: usize,
}

impl BlockScales {
    /// Scales of the blocks that a row of the matrix runs through.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn of_row(&self, row: usize) -> &[f32] {
        &self.values[row / SCALE_BLOCK * self.cols..][..self.cols]
    }
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
        if let Some(scales) = &self.scales {
            for (block, scale) in out.chunks_mut(SCALE_BLOCK).zip(scales.of_row(row)) {
                block.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }

    /// All elements, row after row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.cols];
        for (row, out) in all.chunks_exact_mut(self.cols).enumerate() {
            self.row_to_f32(row, out);
        }
        all
    }

    /// The same with elements that need no scales: FP8 becomes BF16, each element rounded; others stay as they are.
    #[must_use]
    pub fn without_scales(self) -> Self {
        if self.scales.is_none() {
            return self;
        }
        let mut row = vec![0.0; self.cols];
        let mut data = Vec::with_capacity(self.rows * self.cols * size_of::<bf16>());
        for number in 0..self.rows {
            self.row_to_f32(number, &mut row);
            data.extend(row.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
        }
        Self { dtype: DType::BF16, data: Cow::Owned(data), scales: None, ..self }
    }
}
