//! References in f64 on the host.

use formats::fp8::{e4m3_from_f32, e4m3_to_f32};
use half::bf16;

/// x[m, k] w[n, k]^T.
pub fn product(x: &[bf16], w: &[bf16], m: usize, n: usize, k: usize) -> Vec<f64> {
    let widen = |values: &[bf16]| values.iter().map(|v| f64::from(v.to_f32())).collect::<Vec<f64>>();
    product_f64(&widen(x), &widen(w), m, n, k)
}

/// The same of numbers that no bf16 holds.
pub fn product_f64(x: &[f64], w: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(m * n);
    for row in x.chunks_exact(k).take(m) {
        for weights in w.chunks_exact(k).take(n) {
            let mut lanes = [0.0f64; 8];
            for (a, b) in row.chunks(8).zip(weights.chunks(8)) {
                for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                    *lane += a * b;
                }
            }
            out.push(lanes.iter().sum());
        }
    }
    out
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Attention of one query over keys and values `[positions][width]` at `offset`, from position `first` on.
pub fn attend(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], first: usize, scale: f64) -> Vec<f64> {
    let scores: Vec<f64> = keys[first..]
        .iter()
        .map(|key| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * scale)
        .collect();
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; query.len()];
    for (weight, value) in weights.iter().zip(&values[first..]) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / total * value;
        }
    }
    out
}

/// What FP8 keeps of a value.
pub fn through_fp8(value: bf16) -> f32 {
    e4m3_to_f32(e4m3_from_f32(value.to_f32()))
}

/// Heads of keys and values as the kernels keep them in FP8: word u of 16 bits of a run of 16 elements packs elements u
/// and u + 8.
pub fn pack_codes(values: &[bf16]) -> Vec<u8> {
    let code = |value: &bf16| u16::from(e4m3_from_f32(value.to_f32()));
    let word = |(first, second): (&bf16, &bf16)| {
        let (a, b) = (code(first), code(second));
        let word = (a & 0x80) << 8 | (a & 0x7f) << 4 | (b & 0x80) << 4 | (b & 0x70) << 8 | (b & 0x0f);
        word.to_le_bytes()
    };
    values.chunks_exact(16).flat_map(|run| run[..8].iter().zip(&run[8..]).flat_map(word)).collect()
}

/// The run of 16 elements that eight such words pack.
pub fn unpack_codes(words: &[u16]) -> Vec<f32> {
    let first = |&w: &u16| e4m3_to_f32((w >> 8 & 0x80 | w >> 4 & 0x7f) as u8);
    let second = |&w: &u16| e4m3_to_f32((w >> 4 & 0x80 | w >> 8 & 0x70 | w & 0x0f) as u8);
    words.iter().map(first).chain(words.iter().map(second)).collect()
}
