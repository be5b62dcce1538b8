//! The scales of a block: read from the file form, placed in a tile, and read back.

use half::f16;

use super::super::layout::{Scales, TILE_ROWS};

/// Bytes of an f16 for each row of a tile.
const VALUES: usize = 2 * TILE_ROWS;

/// Writes the scales of a stored super-block before its first block, at `tile`.
pub(super) fn place_outer(kind: Scales, source: &[u8], tile: &mut [u8], lane: usize) {
    match kind {
        Scales::Offset(_) | Scales::Min => {}
        Scales::SuperMin => {
            copy(source, 0, tile, 2 * lane);
            copy(source, 2, tile, VALUES + 2 * lane);
        }
        Scales::Super16 => copy(source, 208, tile, 2 * lane),
    }
}

/// Writes the scales of sub-block `sub` of the stored block `source` behind its quants, at `tile`.
pub(super) fn place_inner(kind: Scales, source: &[u8], sub: usize, tile: &mut [u8], lane: usize) {
    match kind {
        Scales::Offset(_) => copy(source, 0, tile, 2 * lane),
        Scales::Min => {
            copy(source, 0, tile, 2 * lane);
            copy(source, 2, tile, VALUES + 2 * lane);
        }
        Scales::SuperMin => {
            (tile[lane], tile[TILE_ROWS + lane]) = scale_and_min(&source[4..16], sub);
        }
        Scales::Super16 => {
            tile[lane] = source[192 + 2 * sub];
            tile[TILE_ROWS + lane] = source[193 + 2 * sub];
        }
    }
}

/// Scale and minimum of half `half` of the block whose scales are at `outer` and `inner`.
pub(super) fn get(kind: Scales, outer: &[u8], inner: &[u8], half: usize, lane: usize) -> (f32, f32) {
    match kind {
        Scales::Offset(offset) => {
            let scale = value(inner, 2 * lane);
            (scale, -f32::from(offset) * scale)
        }
        Scales::Min => (value(inner, 2 * lane), value(inner, VALUES + 2 * lane)),
        Scales::SuperMin => {
            let (scale, min) = (value(outer, 2 * lane), value(outer, VALUES + 2 * lane));
            (scale * f32::from(inner[lane]), -min * f32::from(inner[TILE_ROWS + lane]))
        }
        Scales::Super16 => {
            let scale = value(outer, 2 * lane) * f32::from(inner[half * TILE_ROWS + lane].cast_signed());
            (scale, -32.0 * scale)
        }
    }
}

fn value(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn copy(source: &[u8], from: usize, tile: &mut [u8], to: usize) {
    tile[to..to + 2].copy_from_slice(&source[from..from + 2]);
}

/// Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each in the low six bits of bytes
/// 0..4 and 4..8, the others in the nibbles of bytes 8..12 with their top two bits above the first ones.
fn scale_and_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (packed[sub] & 63, packed[sub + 4] & 63);
    }
    let low = packed[sub + 4];
    (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
}
