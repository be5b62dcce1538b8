//! The packed form of weights: how rows of every dtype lie in memory once loaded.
//!
//! Sixteen rows make a tile, one vector lane a row. A quantised weight is `scale * u + min` with unsigned
//! `u`, so that `vpdpbusd` takes it without correction; the formats that store signed values have `min =
//! -offset * scale`. A tile is one stream: block after block, each its quants and then its scales.
//!
//! Quants of a block (32 columns) are eight steps of 64 bytes, byte `4 * row + c` of step `j` being column `4
//! * j + c`. Low nibbles of vector `j` of four hold step `j`, high nibbles step `j + 4`; bits above the
//! fourth lie in planes behind them: one bit per step in one vector (`u5`), or two bits per step in two
//! vectors (`u6`).
//!
//! Scales are vectors over the rows of a tile: per block `f16 scale (, f16 min)`; in the 256-wide formats the
//! `f16` of a super-block come before its first block, and each block has integers.

use formats::DType;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a block: activations are quantised in runs of this length.
pub(super) const BLOCK: usize = 32;
/// Steps of a block: a dot instruction takes four columns.
pub(super) const STEPS: usize = 8;
/// Blocks of a super-block of the 256-wide formats.
pub(super) const SUPER: usize = 8;
/// Bytes of a vector of 16 lanes.
pub(super) const VECTOR: usize = 64;

/// Width of the unsigned integer that stands for a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    U4,
    U5,
    U6,
    U8,
}

impl Bits {
    /// Bytes of the quants of one block of a tile.
    pub(super) const fn block_bytes(self) -> usize {
        match self {
            Self::U4 => 4 * VECTOR,
            Self::U5 => 5 * VECTOR,
            Self::U6 => 6 * VECTOR,
            Self::U8 => 8 * VECTOR,
        }
    }
}

/// How the scales of a tile are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// An f16 scale per block; the minimum is `-offset * scale`.
    Offset(u8),
    /// An f16 scale and an f16 minimum per block.
    Min,
    /// Per super-block f16 `d` and `dmin`, per block u8 `s` and `m`: scale `d * s`, minimum `-dmin * m`.
    SuperMin,
    /// Per super-block f16 `d`, per 16 columns i8 `s`: scale `d * s`, minimum `-32 * d * s`.
    Super16,
}

impl Scales {
    /// Bytes before each super-block; 0 if there are none.
    pub(super) const fn outer_bytes(self) -> usize {
        match self {
            Self::Offset(_) | Self::Min => 0,
            Self::SuperMin => 4 * TILE_ROWS,
            Self::Super16 => 2 * TILE_ROWS,
        }
    }

    /// Bytes behind the quants of each block.
    pub(super) const fn inner_bytes(self) -> usize {
        match self {
            Self::Offset(_) | Self::SuperMin | Self::Super16 => 2 * TILE_ROWS,
            Self::Min => 4 * TILE_ROWS,
        }
    }
}

/// Where the parts of a block lie in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockAt {
    /// Scales of the super-block.
    pub outer: usize,
    pub quants: usize,
    /// Scales of the block.
    pub inner: usize,
}

/// Where block `block` lies: blocks in turn, each its quants and then its scales.
#[inline(always)]
pub(super) const fn block_at(bits: Bits, scales: Scales, block: usize) -> BlockAt {
    let bytes = bits.block_bytes() + scales.inner_bytes();
    let outer = block / SUPER * (SUPER * bytes + scales.outer_bytes());
    let quants = block * bytes + (block / SUPER + 1) * scales.outer_bytes();
    BlockAt { outer, quants, inner: quants + bits.block_bytes() }
}

/// How a quantised dtype is packed; `None` for the floats.
///
/// Floats lie column after column, 16 values each; F8E4M3 is packed as F32.
pub(super) const fn quantised(dtype: DType) -> Option<(Bits, Scales)> {
    Some(match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => return None,
        DType::Q8_0 => (Bits::U8, Scales::Offset(128)),
        DType::Q4_0 => (Bits::U4, Scales::Offset(8)),
        DType::Q4_1 => (Bits::U4, Scales::Min),
        DType::Q5_0 => (Bits::U5, Scales::Offset(16)),
        DType::Q5_1 => (Bits::U5, Scales::Min),
        DType::Q4_K => (Bits::U4, Scales::SuperMin),
        DType::Q5_K => (Bits::U5, Scales::SuperMin),
        DType::Q6_K => (Bits::U6, Scales::Super16),
    })
}

/// Bytes of a tile of `cols` columns, a multiple of a cache line.
pub(super) fn tile_bytes(dtype: DType, cols: usize) -> usize {
    let bytes = match quantised(dtype) {
        Some((bits, scales)) => {
            let blocks = cols / BLOCK;
            blocks * (bits.block_bytes() + scales.inner_bytes()) + blocks / SUPER * scales.outer_bytes()
        }
        None => cols * value_bytes(dtype) * TILE_ROWS,
    };
    bytes.next_multiple_of(VECTOR)
}

/// Bytes of a packed value of a float dtype.
pub(super) const fn value_bytes(dtype: DType) -> usize {
    if matches!(dtype, DType::F16 | DType::BF16) { 2 } else { 4 }
}
