use super::{
    super::layout::{TILE_ROWS, VECTOR},
    Bits, Job, Lanes, Part, TileKernel,
};
use crate::simd::Scalar;

type Words = [f32; TILE_ROWS];
type Bytes = [u8; VECTOR];

fn lanes(value: impl FnMut(usize) -> f32) -> Words {
    std::array::from_fn(value)
}

/// # Safety
/// `from` is good for reading a `T`, aligned or not.
unsafe fn read<T: Copy>(from: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { from.cast::<T>().read_unaligned() }
}

impl Lanes for Scalar {
    type B = Bytes;

    const ROWS: usize = 1;
    const ACCUMULATORS: usize = 1;

    unsafe fn enter<K: TileKernel>(job: &Job<'_>, part: &Part) {
        // SAFETY: the caller's promise.
        unsafe { K::run::<Self, 1>(job, part) }
    }

    unsafe fn largest_magnitude(a: Words, b: Words) -> f32 {
        // Magnitudes order like their bits, NaN above all.
        f32::from_bits(a.iter().chain(&b).map(|x| x.abs().to_bits()).fold(0, u32::max))
    }

    unsafe fn store_low_bytes(a: Words, to: *mut i8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; TILE_ROWS]>().write(a.map(|x| x.to_bits() as u8)) }
    }

    unsafe fn load_u8(from: *const u8) -> Words {
        // SAFETY: the caller's promise.
        unsafe { read::<[u8; TILE_ROWS]>(from) }.map(f32::from)
    }

    unsafe fn load_i8(from: *const u8) -> Words {
        // SAFETY: the caller's promise.
        unsafe { read::<[i8; TILE_ROWS]>(from) }.map(f32::from)
    }

    unsafe fn prefetch(_: *const u8) {}

    unsafe fn load_bytes(from: *const u8) -> Bytes {
        // SAFETY: the caller's promise.
        unsafe { read(from) }
    }

    unsafe fn low_nibbles(bytes: Bytes) -> Bytes {
        bytes.map(|byte| byte & 15)
    }

    unsafe fn high_nibbles(bytes: Bytes) -> Bytes {
        bytes.map(|byte| byte >> 4)
    }

    unsafe fn merge<const LEFT: u32, const RIGHT: u32>(base: Bytes, plane: Bytes, mask: u8) -> Bytes {
        std::array::from_fn(|i| base[i] | plane[i] << LEFT >> RIGHT & mask)
    }

    unsafe fn dot<const STEPS: usize>(_: Bits, w: [Bytes; STEPS], x: *const i8) -> Words {
        // SAFETY: the caller's promise; `[[i8; 4]; STEPS]` has no alignment.
        let x = unsafe { x.cast::<[[i8; 4]; STEPS]>().read() };
        lanes(|row| {
            let columns = (0..STEPS).flat_map(|step| (0..4).map(move |c| (step, c)));
            let dot: i32 =
                columns.map(|(step, c)| i32::from(w[step][4 * row + c]) * i32::from(x[step][c])).sum();
            dot as f32
        })
    }
}
