//! References in f64 on the host.

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
