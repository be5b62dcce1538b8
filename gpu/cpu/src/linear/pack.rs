//! Repacks weights from their file form into tiles.

use std::ops::Range;

use formats::{DType, dequantise_row};
use half::{bf16, f16};
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
            return read_floats(self.dtype, tile, lane, out);
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
    match to {
        DType::F16 => place_halves(source, tile, |col| f16_at(col, lane)),
        DType::BF16 => place_halves(source, tile, |col| bf16_at(col, lane)),
        _ => {
            let mut row = vec![0.0; cols];
            dequantise_row(from, source, &mut row);
            for (col, value) in row.into_iter().enumerate() {
                tile[f32_at(col, lane)..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

fn read_floats(dtype: DType, tile: &[u8], lane: usize, out: &mut [f32]) {
    for (col, out) in out.iter_mut().enumerate() {
        *out = match dtype {
            DType::F16 => f16::from_bits(half_at(tile, f16_at(col, lane))).to_f32(),
            DType::BF16 => bf16::from_bits(half_at(tile, bf16_at(col, lane))).to_f32(),
            _ => f32::from_bits(
                u32::from(half_at(tile, f32_at(col, lane)))
                    | u32::from(half_at(tile, f32_at(col, lane) + 2)) << 16,
            ),
        };
    }
}

fn half_at(tile: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([tile[at], tile[at + 1]])
}

fn f32_at(col: usize, lane: usize) -> usize {
    (col * TILE_ROWS + lane) * 4
}

fn f16_at(col: usize, lane: usize) -> usize {
    (col * TILE_ROWS + lane) * 2
}

fn bf16_at(col: usize, lane: usize) -> usize {
    (col / 2 * TILE_ROWS + lane) * 4 + col % 2 * 2
}

fn place_halves(source: &[u8], tile: &mut [u8], at: impl Fn(usize) -> usize) {
    for (col, half) in source.as_chunks::<2>().0.iter().enumerate() {
        tile[at(col)..][..2].copy_from_slice(half);
    }
}
