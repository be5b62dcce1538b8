//! Rounds activations to bytes. One piece of plain code, compiled for each instruction set: every operation in it is
//! exact or rounded once, so all give the same bits.

use std::cell::UnsafeCell;

use super::{super::layout::BLOCK, ActBlock, PANEL};
use crate::Isa;

/// Largest magnitude of a quantised value.
const MAX: f32 = 127.0;
/// 1.5 · 2²³: adding it rounds to the nearest integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Quantises the row `x` into lane `lane` of a panel's blocks.
///
/// # Safety
/// The machine has `isa`, `lane < PANEL`, and nobody else reads or writes that lane meanwhile.
pub(super) unsafe fn row(isa: Isa, x: &[f32], blocks: &[UnsafeCell<ActBlock>], lane: usize) {
    debug_assert!(lane < PANEL);
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
    for (x, cell) in x.as_chunks::<BLOCK>().0.iter().zip(blocks) {
        let (q, scale) = block(x);
        let halves = [0, 16].map(|from| q[from..from + 16].iter().map(|&q| i32::from(q)).sum::<i32>());
        let block = cell.get();
        // SAFETY: the cell is valid and nobody else touches this lane of it; fields of other lanes are left alone.
        unsafe {
            (&raw mut (*block).q[lane]).write(q);
            (&raw mut (*block).scale[lane]).write(scale);
            (&raw mut (*block).sum[lane]).write(scale * (halves[0] + halves[1]) as f32);
            (&raw mut (*block).half_sum[0][lane]).write(scale * halves[0] as f32);
            (&raw mut (*block).half_sum[1][lane]).write(scale * halves[1] as f32);
        }
    }
}

/// The bytes and their scale. A value that is not finite makes the scale not finite, so that it shows in the output.
#[inline(always)]
fn block(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    // Magnitudes order like their bits, with NaN above all.
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max));
    let vanishes = largest < MAX / f32::MAX;
    let inverse = if vanishes { 0.0 } else { MAX / largest };
    let q = x.map(|x| (x * inverse + ROUND).to_bits() as i8);
    (q, if vanishes { 0.0 } else { largest / MAX })
}
