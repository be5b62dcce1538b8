use std::{io, os::fd::OwnedFd};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

/// Anonymous memory that several processes may map. It never changes its size.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapRaw,
    file: OwnedFd,
}

impl Region {
    /// Maps `bytes` of fresh memory, all of it present.
    pub fn create(bytes: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("kv-slots", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(file, bytes)
    }

    /// Maps a region that another process created.
    ///
    /// # Errors
    /// Also if the other process could shrink it, which would kill whoever touches what is gone.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the slots' memory could shrink"));
        }
        let bytes = rustix::fs::fstat(&file)?.st_size as u64;
        Self::map(file, bytes)
    }

    fn map(file: OwnedFd, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        // A first touch later would cost a page fault for each 4 KiB of a transfer.
        let map = MmapOptions::new().len(bytes).populate().map_raw(&file)?;
        Ok(Self { map, file })
    }

    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// # Safety
    /// Nobody stores to the range, in this process or another, while the slice lives.
    ///
    /// # Panics
    /// If the range is not within the region.
    pub unsafe fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.len() && len <= self.len() - at, "outside the region");
        // SAFETY: the range is mapped for as long as `self` lives; that nobody stores to it is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(at), len) }
    }

    /// # Safety
    /// Nobody else reads or stores to the range, in this process or another, while the slice lives.
    ///
    /// # Panics
    /// If the range is not within the region.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that ranges do not overlap")]
    pub unsafe fn bytes_mut(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(at <= self.len() && len <= self.len() - at, "outside the region");
        // SAFETY: the range is mapped for as long as `self` lives; that nobody else uses it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(at), len) }
    }
}
