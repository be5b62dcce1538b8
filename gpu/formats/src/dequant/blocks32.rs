//! Blocks of 32: an f16 scale `d`, for the `_1` kinds an f16 minimum `m`, for the 5-bit kinds a little-endian u32
//! of high bits, then the low nibbles: byte `j` holds element `j` (low) and element `j + 16` (high).

use super::half_at;

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], 0, out, |q| (q - 8.0) * d);
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], 0, out, |q| q * d + m);
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    nibbles(&block[6..], high_bits(&block[2..6]), out, |q| (q - 16.0) * d);
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[8..], high_bits(&block[4..8]), out, |q| q * d + m);
}

fn high_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Bit `j` of `high` is bit 4 of element `j`.
fn nibbles(low: &[u8], high: u32, out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (first, second) = out.split_at_mut(16);
    for (j, &byte) in low.iter().enumerate() {
        let bit = |element: usize| (high >> element & 1) as u8 * 16;
        first[j] = value(f32::from(byte & 15 | bit(j)));
        second[j] = value(f32::from(byte >> 4 | bit(j + 16)));
    }
}
