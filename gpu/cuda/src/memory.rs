use std::{
    marker::PhantomData,
    ops::RangeBounds,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytemuck::Pod;
use cudarc::driver::{CudaContext, DriverError, result, sys::CUresult};

use crate::CudaError;

/// What device memory may hold: plain data, the same bytes on host and device.
pub trait Element: Pod {}
impl<T: Pod> Element for T {}

static ALLOCATED: AtomicU64 = AtomicU64::new(0);

/// Bytes of device memory that the buffers of this process hold.
pub(crate) fn allocated() -> u64 {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Device memory from `cuMemAlloc` (not from a pool: it can be shared with other processes), freed when dropped.
/// Its content is undefined until written.
#[derive(Debug)]
pub struct Buffer<T> {
    address: u64,
    len: usize,
    context: Arc<CudaContext>,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, CudaError> {
        context.bind_to_thread()?;
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: the context is current; the memory is freed once, in drop.
        let address = unsafe { result::malloc_sync(bytes)? };
        ALLOCATED.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Self { address, len, context: context.clone(), element: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, buffer: PhantomData }
    }

    pub fn slice(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        self.view().slice(range)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        ALLOCATED.fetch_sub((self.len * size_of::<T>()).max(1) as u64, Ordering::Relaxed);
        let freed = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: `address` came from malloc_sync and is not used after this; cuMemFree waits for the device.
            unsafe { result::free_sync(self.address) }
        });
        complain(freed, "cannot free device memory");
    }
}

/// A part of a [`Buffer`]. Copies freely, and may overlap others: launches run in order, but for the two halves of
/// [`crate::Device::beside`], which keep off each other's parts, and copies of pages, which wait by events.
#[derive(Debug)]
pub struct View<'a, T> {
    address: u64,
    len: usize,
    buffer: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

impl<'a, T: Element> View<'a, T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// # Panics
    /// If the range does not lie within the view.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = crate::memory::resolve(range, self.len);
        Self {
            address: self.address + (range.start * size_of::<T>()) as u64,
            len: range.len(),
            buffer: PhantomData,
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// If the bytes are not whole, aligned elements of it.
    pub fn cast<U: Element>(&self) -> View<'a, U> {
        assert!(self.bytes().is_multiple_of(size_of::<U>()), "whole elements");
        assert!(self.address.is_multiple_of(align_of::<U>() as u64), "aligned elements");
        View { address: self.address, len: self.bytes() / size_of::<U>(), buffer: PhantomData }
    }
}

fn resolve(range: impl RangeBounds<usize>, len: usize) -> std::ops::Range<usize> {
    use std::ops::Bound;
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "range {start}..{end} of {len} elements");
    start..end
}

/// Page-locked host memory that the device copies from and to without a stop. Zeroed at first; cacheable, so the
/// host reads it at full speed.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    pointer: *mut T,
    len: usize,
    context: Arc<CudaContext>,
}

impl<T: Element> PinnedBuffer<T> {
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, CudaError> {
        context.bind_to_thread()?;
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: the context is current; the memory is freed once, in drop.
        let pointer = unsafe { result::malloc_host(bytes, 0)? };
        // SAFETY: `pointer` is valid for `bytes` bytes and nothing else refers to it yet.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { pointer: pointer.cast(), len, context: context.clone() })
    }

    /// Where the device finds it.
    pub(crate) fn address(&self) -> u64 {
        self.pointer as u64
    }

    /// What the host sees; meaningful only while no copy to this memory is under way.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `pointer` is valid for `len` initialised elements, page-aligned, and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// To be written only while no copy from this memory is under way.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

// SAFETY: the buffer owns its memory, and plain data may be read and written on any thread.
unsafe impl<T: Element + Send> Send for PinnedBuffer<T> {}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        let freed = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: `pointer` came from malloc_host and is not used after this.
            unsafe { result::free_host(self.pointer.cast()) }
        });
        complain(freed, "cannot free pinned memory");
    }
}

/// Logs why something was not given back. A process that ends may lose its driver first, which takes everything back.
pub(crate) fn complain(outcome: Result<(), DriverError>, what: &str) {
    match outcome {
        Ok(()) | Err(DriverError(CUresult::CUDA_ERROR_DEINITIALIZED)) => {}
        Err(error) => tracing::warn!(%error, "{what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn ranges_resolve_against_a_length() {
        assert_eq!(resolve(.., 4), 0..4);
        assert_eq!(resolve(1..=2, 4), 1..3);
        assert_eq!(resolve(4.., 4), 4..4);
    }

    #[test]
    #[should_panic(expected = "range 3..5 of 4 elements")]
    fn a_range_past_the_end_is_refused() {
        resolve(3..5, 4);
    }
}
