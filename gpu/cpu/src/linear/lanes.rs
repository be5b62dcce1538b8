//! The few vector operations that the kernels are written in, once per instruction set. A vector has 16 lanes, one
//! per row of a tile, however many registers that takes. Every operation is exact or rounds once, so the kernels give
//! the same bits on all of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use super::{
    layout::{Bits, TILE_ROWS, VECTOR},
    sweep::{Job, Part, TileKernel},
};

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2Fma;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512Vnni;
pub(super) use scalar::Scalar;

/// The operations. Code over them must be free of closures and generic adaptors: a closure is compiled without the
/// features of the function around it, and then each operation in it becomes a call.
///
/// # Safety
/// Of all functions: the machine has the instructions, and pointers are good for what is read or written (16 lanes
/// unless said otherwise); no alignment is asked for.
pub(super) trait Lanes {
    /// 16 f32.
    type F: Copy;
    /// 64 bytes: four columns of each row.
    type B: Copy;

    /// Activation rows that a kernel takes at once.
    const ROWS: usize;
    /// Registers for sums that a float kernel fills.
    const SUMS: usize;

    /// Runs the kernel in a function compiled for these instructions and this number of `part.rows`, in
    /// `1..=Self::ROWS`.
    unsafe fn enter<K: TileKernel>(job: &Job<'_>, part: &Part);

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    unsafe fn load_f32(from: *const u8) -> Self::F;
    unsafe fn load_f16(from: *const u8) -> Self::F;
    /// 16 words of two bf16: the low halves and the high halves.
    unsafe fn load_bf16_pair(from: *const u8) -> (Self::F, Self::F);
    unsafe fn load_u8(from: *const u8) -> Self::F;
    unsafe fn load_i8(from: *const u8) -> Self::F;
    /// Writes the first `lanes` lanes.
    unsafe fn store(value: Self::F, to: *mut f32, lanes: usize);

    /// Fetches the cache line of `at`, any address.
    unsafe fn prefetch(at: *const u8);
    unsafe fn load_bytes(from: *const u8) -> Self::B;
    unsafe fn low_nibbles(bytes: Self::B) -> Self::B;
    unsafe fn high_nibbles(bytes: Self::B) -> Self::B;
    /// `base | (plane << LEFT >> RIGHT) & mask` in each byte; at most one of the shifts is not 0 and no masked bit
    /// comes from a neighbour.
    unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: Self::B, plane: Self::B, mask: u8) -> Self::B;
    /// Dot products of the rows' `4 * STEPS` unsigned values, of `bits` bits, with the signed ones at `x`, none of
    /// which is -128. Exact.
    unsafe fn dot<const STEPS: usize>(bits: Bits, w: [Self::B; STEPS], x: *const i8) -> Self::F;
}
