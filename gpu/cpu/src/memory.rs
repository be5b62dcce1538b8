//! Memory: what an executor takes, what the machine has, and shared buffers.

use std::{cell::UnsafeCell, ops::Range};

mod available;
mod region;

pub(crate) use available::available_bytes;
pub(crate) use region::Region;

/// Bytes that an executor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReport {
    /// Packed weights.
    pub weights: u64,
    /// The KV pool, when all of its pages have been used; until then it takes what was touched.
    pub kv: u64,
    /// Activations, logits and what the threads need.
    pub scratch: u64,
}

impl MemoryReport {
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.scratch
    }
}

/// A buffer whose parts are written by different threads at the same time.
#[derive(Debug)]
pub(crate) struct Shared<T>(Box<[UnsafeCell<T>]>);

// SAFETY: the accessors make their callers promise that no two threads use one element, unless both only read.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn from_fn(len: usize, make: impl FnMut(usize) -> T) -> Self {
        Self((0..len).map(make).map(UnsafeCell::new).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    /// # Safety
    /// Nobody writes these elements while the result is in use.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.0[range];
        // SAFETY: a cell has the layout of its content; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// # Safety
    /// Nobody else uses these elements while the result is in use.
    #[expect(clippy::mut_from_ref, reason = "the elements are cells")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.0[range];
        // SAFETY: as above; the cells allow writing.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

impl Shared<f32> {
    /// Address of an element.
    pub fn at(&self, index: usize) -> *mut f32 {
        self.0[index].get()
    }

    pub fn zeroed(len: usize) -> Self {
        let zeros: Box<[f32]> = vec![0.0; len].into();
        // SAFETY: a cell has the layout of its content.
        Self(unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [UnsafeCell<f32>]) })
    }
}
