//! The "K" kinds: super-blocks of 256 with one f16 scale (and minimum) over 6- or 8-bit scales of sub-blocks.

use super::half_at;

/// `d`, `dmin`, 12 bytes of packed scales, 128 bytes of nibbles.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    k4_k5(block, &[0; 32], &block[16..], out);
}

/// As Q4_K, with 32 bytes before the nibbles whose bit `i` is bit 4 of sub-block `i`.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    k4_k5(block, &block[16..48], &block[48..], out);
}

fn k4_k5(block: &[u8], high: &[u8], low: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], sub);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let nibbles = &low[sub / 2 * 32..][..32];
        for ((out, &byte), &high) in out.iter_mut().zip(nibbles).zip(high) {
            let q = byte >> (sub % 2 * 4) & 15 | (high >> sub & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// Eight 6-bit scales and eight 6-bit minima in 12 bytes: those of sub-blocks 0..4 in the low six bits of bytes
/// 0..4 and 4..8, those of sub-blocks 4..8 in the nibbles of bytes 8..12 with their top two bits above the others.
fn scale_and_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let nibbles = packed[sub + 4];
        (nibbles & 15 | packed[sub - 4] >> 6 << 4, nibbles >> 4 | packed[sub] >> 6 << 4)
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, `d`. Each half of 128 elements takes 64
/// and 32 of the bytes, in four runs of 32 elements.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 208);
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[part * 64..][..64], &block[128 + part * 32..][..32]);
        let scales = &block[192 + part * 8..][..8];
        for (i, out) in out.iter_mut().enumerate() {
            let (run, l) = (i / 32, i % 32);
            let nibble = low[run % 2 * 32 + l] >> (run / 2 * 4) & 15;
            let q = nibble | (high[l] >> (run * 2) & 3) << 4;
            *out = d * f32::from(scales[i / 16].cast_signed()) * (f32::from(q) - 32.0);
        }
    }
}
