use std::{io, ptr::NonNull};

/// A large zeroed block of memory that costs nothing until it is touched.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the region; whoever uses the pointer answers for it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes, aligned to a page of the machine.
    pub fn map(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Keys and values of a sequence are spread over many pages: without large ones each costs a table walk. Only
        // advice, so its failure is of no interest.
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just mapped.
        unsafe {
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// Has the system give out `len` bytes now, from `at` on, which begins a page of the machine. What they hold stays, and
    /// others may use them meanwhile. Older systems (Linux before 5.14) do it at the first touch all the same.
    pub fn populate(&self, at: usize, len: usize) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies in the mapping, and the advice changes nothing that anybody could see.
        unsafe {
            libc::madvise(self.start.as_ptr().add(at).cast(), len, libc::MADV_POPULATE_WRITE);
        }
    }

    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
