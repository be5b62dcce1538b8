//! Memory for weights: long mappings that lie on huge pages where the kernel grants them, which doubles the rate at
//! which weights are read. Matrices of a model are packed one behind the other, each is smaller than a huge page.

use std::{
    io,
    ops::Range,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use super::layout::VECTOR;

/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Least length of a mapping. What is not used of it is never touched and so takes no memory.
const MAPPING: usize = 64 << 20;

/// A zeroed buffer, aligned for vectors.
#[derive(Debug)]
pub(super) struct Buffer {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Buffer {
    /// Takes `len` bytes behind the buffer that was taken last, by whomever.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        static LAST: Mutex<Option<(Arc<Mapping>, usize)>> = Mutex::new(None);

        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let (mapping, start) = match last.take() {
            Some((mapping, used)) if len <= mapping.len - used => (mapping, used),
            _ => (Arc::new(Mapping::new(len.max(MAPPING))?), 0),
        };
        let range = start..start + len;
        *last = Some((mapping.clone(), range.end.next_multiple_of(VECTOR)));
        Ok(Self { mapping, range })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, belongs to this buffer alone, and is initialised (zeroed by the
        // kernel); writing needs a mutable borrow.
        unsafe {
            std::slice::from_raw_parts(self.mapping.start.as_ptr().add(self.range.start), self.range.len())
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.mapping.start.as_ptr().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

/// Anonymous memory, aligned to a huge page; a whole number of them.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    raw: NonNull<u8>,
    raw_len: usize,
}

// SAFETY: the memory is reached through buffers only, whose borrows keep readers and writers apart.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let len = len.next_multiple_of(HUGE_PAGE);
        let raw_len = len + HUGE_PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), raw_len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let raw = NonNull::new(raw.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let skip = raw.align_offset(HUGE_PAGE);
        // SAFETY: `skip` is less than a huge page, by which the mapping is longer than `len`.
        let start = unsafe { raw.add(skip) };
        // SAFETY: the range lies in the mapping. A refusal is no error: the pages are small then.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
        }
        Ok(Self { start, len, raw, raw_len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no buffer refers to it any more.
        unsafe { libc::munmap(self.raw.as_ptr().cast(), self.raw_len) };
    }
}
