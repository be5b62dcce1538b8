//! Vectors of 16 f32 lanes, written once per instruction set, and the arithmetic built from them.
//!
//! Everything that is not a matrix product (norms, rotations, attention, activations) is generic code over [`Simd`]
//! and compiled once for each instruction set. The order of all roundings is that of the generic code, so each gives
//! the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use math::{exp, silu};
pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on 16 lanes; each lane rounds as IEEE 754 says.
///
/// # Safety
/// Of all functions: the machine has the instructions (the caller runs inside a function compiled for them), and
/// pointers are good for the lanes that are read or written. No alignment is asked for.
pub(crate) trait Simd: Copy + 'static {
    /// 16 f32.
    type F: Copy;

    /// Vectors that a kernel keeps in registers as running sums.
    const SUMS: usize;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? yes : no`.
    unsafe fn select_less(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// Keeps the lanes `from..to` and sets the others to `fill`; `from ≤ to ≤ 16`.
    unsafe fn keep(a: Self::F, from: usize, to: usize, fill: f32) -> Self::F;
    /// `2^n` where `shifted` is `n + 1.5 * 2^23`, `n` in -126..=127.
    unsafe fn power_of_two(shifted: Self::F) -> Self::F;

    /// Sum of the lanes: halves are added lane by lane until one is left.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest lane.
    unsafe fn largest(a: Self::F) -> f32;
    /// Lane 0.
    unsafe fn first(a: Self::F) -> f32;

    unsafe fn load(from: *const f32) -> Self::F;
    /// The first `n ≤ 16` lanes; the others are 0 and not read.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::F;
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    unsafe fn store(a: Self::F, to: *mut f32);
    /// Writes the first `n ≤ 16` lanes.
    unsafe fn store_first(a: Self::F, to: *mut f32, n: usize);
    /// Rounds to the nearest, ties to even.
    unsafe fn store_f16(a: Self::F, to: *mut u16);
}

/// Compiles generic kernels for each instruction set: `kernel!(name = body(arg: Type, …));` defines
/// `fn name(isa: Isa, arg: Type, …)`, which runs `body::<V>(arg, …)` for the vectors `V` of `isa`.
macro_rules! kernel {
    ($(#[$doc:meta])* $visible:vis fn $name:ident = $body:ident $(<$($generic:ident: $bound:path),*>)?
     ($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        $visible unsafe fn $name $(<$($generic: $bound),*>)? (isa: $crate::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2 $(<$($generic: $bound),*>)? ($($arg: $type),*) {
                    // SAFETY: this function is compiled for these vectors; the rest is the caller's promise.
                    unsafe { $body::<$crate::simd::Avx2 $($(, $generic)*)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn avx512 $(<$($generic: $bound),*>)? ($($arg: $type),*) {
                    // SAFETY: as above.
                    unsafe { $body::<$crate::simd::Avx512 $($(, $generic)*)?>($($arg),*) }
                }
                match isa {
                    $crate::Isa::Scalar => {}
                    // SAFETY: an `Isa` is used only where the machine supports it; the rest is the caller's promise.
                    $crate::Isa::Avx2Fma => return unsafe { avx2 $(::<$($generic),*>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::Isa::Avx512Vnni => return unsafe { avx512 $(::<$($generic),*>)? ($($arg),*) },
                }
            }
            let _ = isa;
            // SAFETY: plain Rust runs anywhere; the rest is the caller's promise.
            unsafe { $body::<$crate::simd::Scalar $($(, $generic)*)?>($($arg),*) }
        }
    };
}
pub(crate) use kernel;
