//! Repacks weights from their file form into tiles.

use std::ops::Range;

use formats::{DType, dequantise_row};
use models::Matrix;

use super::{
    PackError, Precision,
    arena::Buffer,
    layout::{self, BLOCK, TILE_ROWS},
};

mod quants;
mod scales;

/// Rows of one dtype, packed.
#[derive(Debug)]
pub(super) struct Segment {
    /// What the packed values are, which is not always what the file held.
    pub dtype: DType,
    /// First row in the stacked matrix.
    pub first_row: usize,
    pub rows: usize,
    /// First tile in the stacked matrix.
    pub first_tile: usize,
    tile_bytes: usize,
    data: Buffer,
}

impl Segment {
    pub fn tiles(&self) -> Range<usize> {
        self.first_tile..self.first_tile + self.rows.div_ceil(TILE_ROWS)
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// Bytes of tile `tile`, counted from the segment's first.
    pub fn tile(&self, tile: usize) -> &[u8] {
        &self.data.bytes()[tile * self.tile_bytes..][..self.tile_bytes]
    }

    /// Dequantises row `row` of the segment.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        let Some((bits, kind)) = layout::quantised(self.dtype) else {
            let bytes = layout::value_bytes(self.dtype);
            for (value, out) in tile.chunks_exact(bytes).skip(lane).step_by(TILE_ROWS).zip(out) {
                dequantise_row(self.dtype, value, std::slice::from_mut(out));
            }
            return;
        };
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let at = layout::block_at(bits, kind, block);
            for (half, out) in out.chunks_exact_mut(BLOCK / 2).enumerate() {
                let (scale, min) = scales::get(kind, &tile[at.outer..], &tile[at.inner..], half, lane);
                for (i, out) in out.iter_mut().enumerate() {
                    let q = quants::get(bits, &tile[at.quants..], lane, half * BLOCK / 2 + i);
                    *out = scale.mul_add(f32::from(q), min);
                }
            }
        }
    }
}

/// Packs stacked parts, neighbours of one dtype into one segment.
pub(super) fn pack(parts: &[Matrix<'_>], precision: Precision) -> Result<Vec<Segment>, PackError> {
    let cols = parts.first().ok_or(PackError::Empty)?.cols;
    for part in parts {
        check(part, cols)?;
    }
    let dtype = |part: &Matrix<'_>| packed_dtype(part.dtype, precision);
    let mut segments = Vec::<Segment>::new();
    for group in parts.chunk_by(|a, b| dtype(a) == dtype(b)) {
        let (first_row, first_tile) =
            segments.last().map_or((0, 0), |last| (last.first_row + last.rows, last.tiles().end));
        segments.push(segment(group, dtype(&group[0]), first_row, first_tile)?);
    }
    Ok(segments)
}

fn packed_dtype(dtype: DType, precision: Precision) -> DType {
    match (precision, dtype) {
        (Precision::F32, _) | (_, DType::F8E4M3) => DType::F32,
        (Precision::Packed, dtype) => dtype,
    }
}

fn check(part: &Matrix<'_>, cols: usize) -> Result<(), PackError> {
    if part.rows == 0 || part.cols == 0 {
        return Err(PackError::Empty);
    }
    if part.cols != cols {
        return Err(PackError::Cols { first: cols, other: part.cols });
    }
    let expected = part.dtype.row_bytes(cols).and_then(|bytes| bytes.checked_mul(part.rows));
    if expected != Some(part.data.len()) {
        return Err(PackError::Bytes { dtype: part.dtype, rows: part.rows, cols, bytes: part.data.len() });
    }
    Ok(())
}

fn segment(
    parts: &[Matrix<'_>],
    dtype: DType,
    first_row: usize,
    first_tile: usize,
) -> Result<Segment, PackError> {
    let cols = parts[0].cols;
    let rows = parts.iter().map(|part| part.rows).sum::<usize>();
    let tile_bytes = layout::tile_bytes(dtype, cols);
    let mut data = Buffer::zeroed(rows.div_ceil(TILE_ROWS) * tile_bytes)?;
    let mut row = 0;
    for part in parts {
        let row_bytes = part.data.len() / part.rows;
        for source in part.data.chunks_exact(row_bytes) {
            let tile = &mut data.bytes_mut()[row / TILE_ROWS * tile_bytes..][..tile_bytes];
            place_row(part.dtype, dtype, source, cols, tile, row % TILE_ROWS);
            row += 1;
        }
    }
    Ok(Segment { dtype, first_row, rows, first_tile, tile_bytes, data })
}

/// Writes one row, stored as `from`, into lane `lane` of a tile of dtype `to`.
fn place_row(from: DType, to: DType, source: &[u8], cols: usize, tile: &mut [u8], lane: usize) {
    if let Some((bits, kind)) = layout::quantised(to) {
        let subs = from.block_len() / BLOCK;
        for (i, source) in source.chunks_exact(from.block_bytes()).enumerate() {
            for sub in 0..subs {
                let at = layout::block_at(bits, kind, i * subs + sub);
                quants::place(bits, &quants::read(from, source, sub), &mut tile[at.quants..], lane);
                scales::place_inner(kind, source, sub, &mut tile[at.inner..], lane);
            }
            scales::place_outer(
                kind,
                source,
                &mut tile[layout::block_at(bits, kind, i * subs).outer..],
                lane,
            );
        }
        return;
    }
    let bytes = layout::value_bytes(to);
    let mut place = |col: usize, value: &[u8]| {
        tile[(col * TILE_ROWS + lane) * bytes..][..bytes].copy_from_slice(value);
    };
    if from == to {
        source.chunks_exact(bytes).enumerate().for_each(|(col, value)| place(col, value));
    } else {
        let mut row = vec![0.0; cols];
        dequantise_row(from, source, &mut row);
        row.iter().enumerate().for_each(|(col, value)| place(col, &value.to_le_bytes()));
    }
}
