use half::{bf16, f16};

use super::{LANES, Simd};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type Lanes = [f32; LANES];

#[inline(always)]
fn lanes(lane: impl FnMut(usize) -> f32) -> Lanes {
    std::array::from_fn(lane)
}

/// Folds the upper half of the lanes onto the lower one until one is left.
#[inline(always)]
fn fold(mut a: Lanes, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] = combine(a[i], a[i + width]);
        }
        width /= 2;
    }
    a[0]
}

impl Simd for Scalar {
    type F = Lanes;

    const SUMS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] - b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] / b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn fnma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        lanes(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn select_less(a: Lanes, b: Lanes, yes: Lanes, no: Lanes) -> Lanes {
        lanes(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    unsafe fn keep(a: Lanes, from: usize, to: usize, fill: f32) -> Lanes {
        lanes(|i| if (from..to).contains(&i) { a[i] } else { fill })
    }

    #[inline(always)]
    unsafe fn power_of_two(shifted: Lanes) -> Lanes {
        lanes(|i| f32::from_bits(shifted[i].to_bits().wrapping_add(127) << 23))
    }

    #[inline(always)]
    unsafe fn sum(a: Lanes) -> f32 {
        fold(a, |x, y| x + y)
    }

    #[inline(always)]
    unsafe fn largest(a: Lanes) -> f32 {
        fold(a, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    unsafe fn first(a: Lanes) -> f32 {
        a[0]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Lanes {
        // SAFETY: the caller's promise.
        lanes(|i| if i < n { unsafe { from.add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Lanes {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| f16::from_bits(bits[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Lanes {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| bf16::from_bits(bits[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn store(a: Lanes, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Lanes>().write_unaligned(a) }
    }

    #[inline(always)]
    unsafe fn store_first(a: Lanes, to: *mut f32, n: usize) {
        for (i, lane) in a.into_iter().enumerate().take(n) {
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write_unaligned(lane) };
        }
    }

    #[inline(always)]
    unsafe fn store_f16(a: Lanes, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(a.map(|lane| f16::from_f32(lane).to_bits())) }
    }
}
