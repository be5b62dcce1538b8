//! What this machine does at best: the bounds of decoding at batch 1 and of long prompts.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// Larger than any cache, in 8-byte words a thread.
const WORDS_EACH: usize = 16 << 20;
const PASSES: usize = 5;
/// Independent sums, so that additions do not wait for each other.
const LANES: usize = 32;
/// How long a thread computes in a pass.
const COMPUTE_FOR: Duration = Duration::from_millis(50);

/// Bytes a second that `threads` threads read together: the best of several passes.
pub fn read_rate(threads: usize) -> f64 {
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

/// Integer operations a second that `threads` threads do together in byte dot products on registers: the best of
/// several passes. `None` if the machine has no such instruction.
pub fn int8_rate(threads: usize) -> Option<f64> {
    let pass = || {
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(compute)).collect();
            running.into_iter().map(|thread| thread.join().ok()?).sum()
        })
    };
    (0..PASSES).map(|_| pass()).try_fold(0.0, |best: f64, rate: Option<f64>| Some(best.max(rate?)))
}

/// Operations a second of one thread.
fn compute() -> Option<f64> {
    let (began, mut operations) = (Instant::now(), 0);
    while began.elapsed() < COMPUTE_FOR {
        operations += cpu::int8_operations()?;
    }
    Some(operations as f64 / began.elapsed().as_secs_f64())
}
