//! The scales of a block: read from the file form, placed in a tile, and read back.

use half::f16;

use super::super::layout::{SUPER, Scales, TILE_ROWS};

/// Bytes of an f16 for each row of a tile.
const VALUES: usize = 2 * TILE_ROWS;

/// Writes the scales of the stored block `source`, the `index`th of its row, into a tile's scales.
pub(super) fn place(
    kind: Scales,
    source: &[u8],
    index: usize,
    scales: &mut [u8],
    blocks: usize,
    lane: usize,
) {
    let mut copy = |from: usize, to: usize| {
        scales[to + 2 * lane..][..2].copy_from_slice(&source[from..from + 2]);
    };
    match kind {
        Scales::Offset(_) => copy(0, index * VALUES),
        Scales::Min => {
            copy(0, index * 2 * VALUES);
            copy(2, (index * 2 + 1) * VALUES);
        }
        Scales::SuperMin => {
            copy(0, index * 2 * VALUES);
            copy(2, (index * 2 + 1) * VALUES);
            for sub in 0..SUPER {
                let (scale, min) = scale_and_min(&source[4..16], sub);
                let at = super_min(blocks, index * SUPER + sub) + lane;
                scales[at] = scale;
                scales[at + TILE_ROWS] = min;
            }
        }
        Scales::Super16 => {
            copy(208, index * VALUES);
            for (half, &scale) in source[192..208].iter().enumerate() {
                scales[super_16(blocks, index * SUPER, half) + lane] = scale;
            }
        }
    }
}

/// Scale and minimum of 16 columns: half `half` of block `block`.
pub(super) fn get(
    kind: Scales,
    scales: &[u8],
    blocks: usize,
    block: usize,
    half: usize,
    lane: usize,
) -> (f32, f32) {
    let value = |at: usize| {
        let at = at * VALUES + 2 * lane;
        f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
    };
    match kind {
        Scales::Offset(offset) => (value(block), -f32::from(offset) * value(block)),
        Scales::Min => (value(2 * block), value(2 * block + 1)),
        Scales::SuperMin => {
            let at = super_min(blocks, block) + lane;
            let (scale, min) = (f32::from(scales[at]), f32::from(scales[at + TILE_ROWS]));
            (value(block / SUPER * 2) * scale, -value(block / SUPER * 2 + 1) * min)
        }
        Scales::Super16 => {
            let scale = scales[super_16(blocks, block, half) + lane].cast_signed();
            let scale = value(block / SUPER) * f32::from(scale);
            (scale, -32.0 * scale)
        }
    }
}

/// Where the integers of block `block` begin.
fn super_min(blocks: usize, block: usize) -> usize {
    blocks / SUPER * 2 * VALUES + block * 2 * TILE_ROWS
}

/// Where the integers of half `half` of block `block` begin.
fn super_16(blocks: usize, block: usize, half: usize) -> usize {
    blocks / SUPER * VALUES + (2 * block + half) * TILE_ROWS
}

/// Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each in the low six bits of bytes 0..4
/// and 4..8, the others in the nibbles of bytes 8..12 with their top two bits above the first ones.
fn scale_and_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (packed[sub] & 63, packed[sub + 4] & 63);
    }
    let low = packed[sub + 4];
    (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
}
