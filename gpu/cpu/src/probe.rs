//! What a core does at best: the bound that integer matrix products are measured against.

/// Turns of the loop: some tens of microseconds.
#[cfg(target_arch = "x86_64")]
const TURNS: usize = 10_000;
/// Independent sums, so that an instruction does not wait for the one before it.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;
/// A multiplication and an addition for each of the 64 bytes.
#[cfg(target_arch = "x86_64")]
const OPERATIONS: usize = 128;

/// Runs `vpdpbusd` on 512-bit registers for some tens of microseconds and returns the operations done, additions
/// and multiplications counted. `None` if this machine has not got the instruction.
pub fn int8_operations() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    if crate::Isa::Avx512Vnni.is_available() {
        // SAFETY: the machine has the instructions.
        std::hint::black_box(unsafe { dots(std::hint::black_box(3)) });
        return Some((TURNS * CHAINS * OPERATIONS) as u64);
    }
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dots(byte: i8) -> i32 {
    use std::arch::x86_64::*;

    let (w, x) = (_mm512_set1_epi8(byte), _mm512_set1_epi8(byte));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..TURNS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, w, x);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum)).fold(0, i32::wrapping_add)
}
