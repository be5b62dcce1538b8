//! What the machine can do at best: the figures that products are measured against.

use divan::{
    Bencher, black_box,
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
    const TURNS: usize = 10_000;
    const CHAINS: usize = 12;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dots(byte: i8) -> i32 {
        use std::arch::x86_64::*;
        let (w, x) = (_mm512_set1_epi8(byte), black_box(_mm512_set1_epi8(byte)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum)).fold(0, i32::wrapping_add)
    }

    #[cfg(target_arch = "x86_64")]
    if cpu::Isa::Avx512Vnni.is_available() {
        bencher
            .counter(ItemsCount::new(TURNS * CHAINS * 128))
            // SAFETY: the machine has the instructions.
            .bench(|| unsafe { dots(black_box(3)) });
        return;
    }
    bencher.bench(|| ());
}
