//! Memory for weights: long mappings that lie on huge pages where the kernel grants them, which doubles the
//! rate at which weights are read. Matrices of a model are packed one behind the other, each is smaller than
//! a huge page.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::layout::VECTOR;
use crate::memory::Region;

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
        /// The mapping in use, while a buffer lies in it, and how much of it is taken.
        static LAST: Mutex<(Weak<Mapping>, usize)> = Mutex::new((Weak::new(), 0));

        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let (mapping, start) = match last.0.upgrade() {
            Some(mapping) if len <= mapping.len - last.1 => (mapping, last.1),
            _ => (Arc::new(Mapping::new(len.max(MAPPING))?), 0),
        };
        let range = start..start + len;
        *last = (Arc::downgrade(&mapping), range.end.next_multiple_of(VECTOR));
        Ok(Self { mapping, range })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, belongs to this buffer alone, and is initialised (zeroed by
        // the kernel); writing needs a mutable borrow.
        unsafe { std::slice::from_raw_parts(self.mapping.start.add(self.range.start), self.range.len()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.add(self.range.start), self.range.len()) }
    }
}

/// A whole number of huge pages.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
    _region: Region,
}

// SAFETY: the memory is reached through buffers only, whose borrows keep readers and writers apart.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let len = len.next_multiple_of(HUGE_PAGE);
        let region = Region::map(len + HUGE_PAGE)?;
        let skip = region.start().align_offset(HUGE_PAGE);
        // SAFETY: `skip` is less than a huge page, by which the region is longer than `len`.
        let start = unsafe { region.start().add(skip) };
        // SAFETY: the range lies in the region. A refusal is no error: the pages are small then.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        }
        Ok(Self { start, len, _region: region })
    }
}
