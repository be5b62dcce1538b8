//! How fast this machine reads memory: the bound of decoding at batch 1.

use std::{hint::black_box, thread, time::Instant};

/// Larger than any cache, in 8-byte words a thread.
const WORDS_EACH: usize = 16 << 20;
const PASSES: usize = 5;
/// Independent sums, so that additions do not wait for each other.
const LANES: usize = 32;

/// Bytes a second that `threads` threads read together: the best of several passes.
pub fn bytes_per_second(threads: usize) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..threads).map(|seed| vec![seed as u64 + 1; WORDS_EACH]).collect();
    let bytes = (threads * WORDS_EACH * size_of::<u64>()) as f64;
    let pass = || {
        let began = Instant::now();
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| black_box(sum(buffer)));
            }
        });
        bytes / began.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    for chunk in words.chunks_exact(LANES) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |total, lane| total.wrapping_add(*lane))
}
