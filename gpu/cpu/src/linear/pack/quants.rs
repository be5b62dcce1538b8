//! The integers of a block: read from the file form, placed in a tile.

use formats::DType;

use super::super::layout::{BLOCK, Bits, STEPS, VECTOR};

/// The unsigned integers of 32 columns: sub-block `sub` of the stored block `source`.
pub(super) fn read(dtype: DType, source: &[u8], sub: usize) -> [u8; BLOCK] {
    match dtype {
        DType::Q8_0 => std::array::from_fn(|i| source[2 + i] ^ 0x80),
        DType::Q4_0 => nibbles(&source[2..], 0),
        DType::Q4_1 => nibbles(&source[4..], 0),
        DType::Q5_0 => nibbles(&source[6..], word(&source[2..])),
        DType::Q5_1 => nibbles(&source[8..], word(&source[4..])),
        DType::Q4_K => super_nibbles(&source[16..], sub, |_| 0),
        DType::Q5_K => super_nibbles(&source[48..], sub, |i| source[16 + i] >> sub & 1),
        DType::Q6_K => {
            // Halves of 128 columns, each 64 bytes of nibbles and 32 of bit pairs in four runs of 32 columns.
            let (half, run) = (sub / 4, sub % 4);
            let low = &source[half * 64 + run % 2 * 32..][..BLOCK];
            let high = &source[128 + half * 32..][..BLOCK];
            std::array::from_fn(|i| low[i] >> (run / 2 * 4) & 15 | (high[i] >> (run * 2) & 3) << 4)
        }
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => unreachable!("a float dtype has no blocks"),
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Byte `i` holds columns `i` and `i + 16`; bit `i` of `high` is bit 4 of column `i`.
fn nibbles(low: &[u8], high: u32) -> [u8; BLOCK] {
    std::array::from_fn(|i| low[i % 16] >> (i / 16 * 4) & 15 | ((high >> i & 1) as u8) << 4)
}

/// Sub-blocks `2 n` and `2 n + 1` are the low and high nibbles of the same 32 bytes.
fn super_nibbles(low: &[u8], sub: usize, high: impl Fn(usize) -> u8) -> [u8; BLOCK] {
    let low = &low[sub / 2 * BLOCK..][..BLOCK];
    std::array::from_fn(|i| low[i] >> (sub % 2 * 4) & 15 | high(i) << 4)
}

/// Writes the integers of one row into lane `lane` of a tile's block.
pub(super) fn place(bits: Bits, quants: &[u8; BLOCK], block: &mut [u8], lane: usize) {
    /// Low bits of each byte of a word.
    const ONE: u32 = 0x0101_0101;
    let (steps, _) = quants.as_chunks::<4>();
    let steps: [u32; STEPS] = std::array::from_fn(|step| u32::from_le_bytes(steps[step]));
    let mut put = |vector: usize, word: u32| {
        block[vector * VECTOR + 4 * lane..][..4].copy_from_slice(&word.to_le_bytes());
    };
    if bits == Bits::U8 {
        steps.into_iter().enumerate().for_each(|(step, word)| put(step, word));
        return;
    }
    for i in 0..4 {
        put(i, steps[i] & (15 * ONE) | (steps[i + 4] & (15 * ONE)) << 4);
    }
    // Bits above the nibble, from `width` bits of each of `steps`.
    let plane = |steps: &[u32], width: usize| {
        let high = |(i, word): (usize, &u32)| (word >> 4 & (((1 << width) - 1) * ONE)) << (width * i);
        steps.iter().enumerate().map(high).fold(0, |a, b| a | b)
    };
    match bits {
        Bits::U5 => put(4, plane(&steps, 1)),
        Bits::U6 => {
            put(4, plane(&steps[..4], 2));
            put(5, plane(&steps[4..], 2));
        }
        Bits::U4 | Bits::U8 => {}
    }
}

/// The integer of column `col` of a tile's block in lane `lane`.
pub(super) fn get(bits: Bits, block: &[u8], lane: usize, col: usize) -> u8 {
    let (step, at) = (col / 4, 4 * lane + col % 4);
    let nibble = block[step % 4 * VECTOR + at] >> (step / 4 * 4) & 15;
    match bits {
        Bits::U4 => nibble,
        Bits::U5 => nibble | (block[4 * VECTOR + at] >> step & 1) << 4,
        Bits::U6 => nibble | (block[(4 + step / 4) * VECTOR + at] >> (step % 4 * 2) & 3) << 4,
        Bits::U8 => block[step * VECTOR + at],
    }
}
