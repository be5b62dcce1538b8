//! Matrices from their files to the device: several threads copy or convert rows into page-locked memory, of which one
//! piece is on its way while the next is filled.

use std::{cell::RefCell, thread};

use cudarc::driver::{CudaEvent, sys::CUevent_flags};
use half::bf16;
use models::{DType, Matrix};

use crate::{CudaError, Device, PinnedBuffer, View};

/// Elements of a piece.
const PIECE: usize = 16 << 20;
const PIECES: usize = 3;
/// Beyond this many memory is the bound.
const MOST_THREADS: usize = 12;

#[derive(Debug)]
pub(super) struct Uploader {
    pieces: RefCell<Pieces>,
    threads: usize,
}

#[derive(Debug)]
struct Pieces {
    all: Vec<Piece>,
    next: usize,
}

#[derive(Debug)]
struct Piece {
    rows: PinnedBuffer<bf16>,
    /// Passed once the rows have left.
    left: CudaEvent,
}

/// Which rows of its target a matrix becomes: `first`, and every `step`th from there on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub first: usize,
    pub step: usize,
}

impl Uploader {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let piece = || -> Result<_, CudaError> {
            Ok(Piece {
                rows: device.allocate_pinned(PIECE)?,
                left: device.context().new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))?,
            })
        };
        let all = (0..PIECES).map(|_| piece()).collect::<Result<_, _>>()?;
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        Ok(Self { pieces: RefCell::new(Pieces { all, next: 0 }), threads })
    }

    /// Starts to copy a matrix as bf16 into rows of `target`, which are as long as the matrix' own. Takes effect in the
    /// order of the device's stream.
    pub fn copy(
        &self,
        device: &Device,
        matrix: &Matrix<'_>,
        target: View<'_, bf16>,
        rows: Rows,
    ) -> Result<(), CudaError> {
        let columns = matrix.cols;
        if columns > PIECE {
            return Err(CudaError::Shape(format!("rows of {columns} elements")));
        }
        let at_once = PIECE / columns;
        let mut pieces = self.pieces.borrow_mut();
        for start in (0..matrix.rows).step_by(at_once) {
            let count = at_once.min(matrix.rows - start);
            let index = pieces.next;
            pieces.next = (index + 1) % PIECES;
            let piece = &mut pieces.all[index];
            piece.left.synchronize()?;
            let part = &mut piece.rows.as_mut_slice()[..count * columns];
            fill(part, matrix, start, self.threads);
            device.write_rows_async(target, part, columns, rows.first + start * rows.step, rows.step)?;
            piece.left.record(device.stream())?;
        }
        Ok(())
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The device may still read from it.
        if let Err(error) = self.left.synchronize() {
            tracing::error!(%error, "weights did not reach the device");
        }
    }
}

/// Rows `first ..` of a matrix.
fn fill(out: &mut [bf16], matrix: &Matrix<'_>, first: usize, threads: usize) {
    let rows = out.len() / matrix.cols;
    let each = rows.div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (number, part) in out.chunks_mut(each * matrix.cols).enumerate() {
            scope.spawn(move || convert(part, matrix, first + number * each));
        }
    });
}

fn convert(out: &mut [bf16], matrix: &Matrix<'_>, first: usize) {
    if matrix.dtype == DType::BF16 {
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        let start = first * matrix.row_bytes();
        out.copy_from_slice(&matrix.data[start..start + out.len()]);
        return;
    }
    let mut wide = vec![0.0; matrix.cols];
    for (number, row) in out.chunks_exact_mut(matrix.cols).enumerate() {
        matrix.row_to_f32(first + number, &mut wide);
        for (out, &value) in row.iter_mut().zip(&wide) {
            *out = bf16::from_f32(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn rows_of_any_type_are_the_same_however_many_threads_fill_them() {
        let values: Vec<f32> = (0..15).map(|at| at as f32 - 7.0).collect();
        let wide: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let narrow: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        for (dtype, data) in [(DType::F32, wide), (DType::BF16, narrow)] {
            let matrix = Matrix { dtype, rows: 5, cols: 3, data: Cow::Borrowed(&data), scales: None };
            for threads in 1..5 {
                let mut out = [bf16::ZERO; 9];
                fill(&mut out, &matrix, 2, threads);
                let found: Vec<f32> = out.iter().map(|value| value.to_f32()).collect();
                assert_eq!(found, values[6..], "{dtype:?}, {threads} threads");
            }
        }
    }
}
