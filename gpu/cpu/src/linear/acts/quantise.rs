//! Rounds activations to bytes. One piece of plain code, compiled for each instruction set: every operation in it is
//! exact or rounded once, so all give the same bits. Loops by index, because an iterator's functions are compiled
//! without the features of the function around them.

#![expect(clippy::needless_range_loop, reason = "see above")]

use std::cell::UnsafeCell;

use super::{super::layout::BLOCK, ActBlock, PANEL};
use crate::Isa;

/// Largest magnitude of a quantised value.
const MAX: f32 = 127.0;
/// 1.5 · 2²³: adding it rounds to the nearest integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;
const SIGN: u32 = 1 << 31;

/// Quantises the row `x` into lane `lane` of a panel's blocks.
///
/// # Safety
/// The machine has `isa`, `lane < PANEL`, and nobody else reads or writes that lane meanwhile.
pub(super) unsafe fn row(isa: Isa, x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    debug_assert!(lane < PANEL && x.len() == blocks.len() * BLOCK);
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => row_avx512(x, blocks, lane),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Fma => row_avx2(x, blocks, lane),
            _ => row_generic(x, blocks, lane),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn row_avx512(x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    // SAFETY: the caller's promise.
    unsafe { row_generic(x, blocks, lane) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn row_avx2(x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    // SAFETY: the caller's promise.
    unsafe { row_generic(x, blocks, lane) }
}

#[inline(always)]
unsafe fn row_generic(x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    let x = x.as_chunks::<BLOCK>().0;
    for i in 0..blocks.len() {
        let rounded = round(&x[i]);
        let mut q = [0i8; BLOCK];
        for i in 0..BLOCK {
            q[i] = rounded.values[i] as i8;
        }
        let halves = [half_sum::<0>(&rounded.values), half_sum::<{ BLOCK / 2 }>(&rounded.values)];
        let scale = rounded.scale;
        let block = blocks[i].get();
        // SAFETY: the cell is valid and nobody else touches this lane of it; fields of other lanes are left alone.
        unsafe {
            (&raw mut (*block).q).cast::<[i8; BLOCK]>().add(lane).write(q);
            (&raw mut (*block).scale).cast::<f32>().add(lane).write(scale);
            (&raw mut (*block).sum).cast::<f32>().add(lane).write(scale * (halves[0] + halves[1]) as f32);
            (&raw mut (*block).half_sum[0]).cast::<f32>().add(lane).write(scale * halves[0] as f32);
            (&raw mut (*block).half_sum[1]).cast::<f32>().add(lane).write(scale * halves[1] as f32);
        }
    }
}

/// A block as `scale * values`. A value that is not finite makes the scale not finite, so that it shows in the output.
struct Rounded {
    values: [i32; BLOCK],
    scale: f32,
}

#[inline(always)]
fn round(x: &[f32; BLOCK]) -> Rounded {
    // Magnitudes order like their bits, with NaN above all.
    let mut largest = 0;
    for i in 0..BLOCK {
        largest = largest.max(x[i].to_bits() & !SIGN);
    }
    let largest = f32::from_bits(largest);
    let vanishes = largest < MAX / f32::MAX;
    let inverse = if vanishes { 0.0 } else { MAX / largest };
    let mut values = [0; BLOCK];
    for i in 0..BLOCK {
        values[i] = (x[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    }
    Rounded { values, scale: if vanishes { 0.0 } else { largest / MAX } }
}

#[inline(always)]
fn half_sum<const FROM: usize>(values: &[i32; BLOCK]) -> i32 {
    let mut sum = 0i32;
    for i in 0..BLOCK / 2 {
        sum = sum.wrapping_add(values[FROM + i]);
    }
    sum
}
