//! What the machine can do at best: the figures that products are measured against.

use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};

use super::{SECONDS, THREADS, WORKING_SET};

/// Reading memory.
#[divan::bench(threads = THREADS, max_time = SECONDS)]
fn read(bencher: Bencher<'_, '_>) {
    let buffer = vec![1u64; WORKING_SET / size_of::<u64>()];
    bencher.counter(BytesCount::new(WORKING_SET)).bench(|| sum(&buffer));
}

fn sum(buffer: &[u64]) -> u64 {
    let sums = buffer.as_chunks::<32>().0.iter().fold([0u64; 32], |mut sums, chunk| {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum ^= value);
        sums
    });
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Operations of `vpdpbusd` on 512-bit registers.
#[divan::bench(threads = THREADS, max_time = SECONDS)]
fn int8(bencher: Bencher<'_, '_>) {
    let operations = cpu::int8_operations().unwrap_or_default();
    bencher.counter(ItemsCount::new(operations)).bench(cpu::int8_operations);
}
