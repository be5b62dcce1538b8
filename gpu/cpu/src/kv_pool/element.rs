use half::{bf16, f16};

use crate::simd::{LANES, Simd};

/// A stored element.
pub(crate) trait Element: Copy + 'static {
    /// Rounds and writes 16 of them.
    ///
    /// # Safety
    /// That of [`Simd`].
    unsafe fn store<V: Simd>(values: V::F, to: *mut Self);

    /// Reads 16 of them.
    ///
    /// # Safety
    /// That of [`Simd`].
    unsafe fn load<V: Simd>(from: *const Self) -> V::F;
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn store<V: Simd>(values: V::F, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { V::store_f16(values, to.cast()) }
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast()) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn store<V: Simd>(values: V::F, to: *mut Self) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the caller's promise.
        unsafe {
            V::store(values, lanes.as_mut_ptr());
            to.cast::<[Self; LANES]>().write_unaligned(lanes.map(Self::from_f32));
        }
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from.cast()) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn store<V: Simd>(values: V::F, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { V::store(values, to) }
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}
