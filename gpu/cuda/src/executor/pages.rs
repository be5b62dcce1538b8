//! Pages of the pool: how many there are, and how they leave it and come in.

use models::{Copying, ExecutorError, ExecutorSpec, KvLayout, PageMove};

use super::{
    config::{CudaConfig, KvBudget},
    staging::{Pool, Staging},
};
use crate::{
    Buffer, CudaError, Device, memory,
    transfer::{Mover, PagePool},
};

/// Kept free of what `MemoryFraction` leaves to the pool: graphs, the library's kernels.
const RESERVE_BYTES: u64 = 256 << 20;

/// Carries pages to and from the pool.
#[derive(Debug)]
pub(super) struct Pages {
    staging: Staging,
    mover: Mover,
    count: u32,
    layout: KvLayout,
}

impl Pages {
    pub fn new(device: &Device, spec: &ExecutorSpec) -> Result<Self, CudaError> {
        let layout = spec.kv.clone();
        let staging = Staging::new(device, layout.page_bytes())?;
        Ok(Self { staging, mover: Mover::new(device)?, count: spec.pages, layout })
    }

    pub fn have_room(&self) -> bool {
        self.staging.is_free() && self.mover.has_room()
    }

    pub fn read(
        &mut self,
        device: &Device,
        kv: &Buffer<u8>,
        page: u32,
        to: &mut [u8],
    ) -> Result<(), ExecutorError> {
        let pool = self.pool(kv, [page], to.len())?;
        Ok(self.staging.read(device, pool, page as usize, to)?)
    }

    pub fn write(
        &mut self,
        device: &Device,
        kv: &Buffer<u8>,
        page: u32,
        from: &[u8],
    ) -> Result<(), ExecutorError> {
        let pool = self.pool(kv, [page], from.len())?;
        Ok(self.staging.write(device, pool, page as usize, from)?)
    }

    pub fn push(
        &self,
        device: &Device,
        kv: &Buffer<u8>,
        moves: &[PageMove],
    ) -> Result<Box<dyn Copying>, ExecutorError> {
        let pool = self.pool_of(kv, moves)?;
        Ok(Box::new(self.mover.push(device, pool, moves)?))
    }

    pub fn pull(
        &self,
        device: &Device,
        kv: &Buffer<u8>,
        moves: &[PageMove],
    ) -> Result<Box<dyn Copying>, ExecutorError> {
        let pool = self.pool_of(kv, moves)?;
        Ok(Box::new(self.mover.pull(device, pool, moves)?))
    }

    fn pool_of<'a>(&self, kv: &'a Buffer<u8>, moves: &[PageMove]) -> Result<PagePool<'a>, ExecutorError> {
        if !self.mover.has_room() {
            return Err(ExecutorError::Batch(format!("no room to move {} pages", moves.len())));
        }
        let moved = moves.iter().map(|moved| moved.page);
        Ok(self.pool(kv, moved, self.layout.page_bytes())?.pages())
    }

    /// The pool, if it has these pages and they are of so many bytes.
    fn pool<'a>(
        &self,
        kv: &'a Buffer<u8>,
        pages: impl IntoIterator<Item = u32>,
        len: usize,
    ) -> Result<Pool<'a>, ExecutorError> {
        let (count, bytes) = (self.count, self.layout.page_bytes());
        if let Some(page) = pages.into_iter().find(|&page| page >= count || len != bytes) {
            let why = format!("{len} bytes of page {page}; there are {count} pages of {bytes} bytes");
            return Err(ExecutorError::Batch(why));
        }
        Ok(Pool { kv, layers: self.layout.layers as usize, layer_bytes: self.layout.layer_bytes as usize })
    }
}

/// Pages of so many bytes that the pool is to have, where so many bytes will be set aside beside it.
pub(super) fn count(
    device: &Device,
    config: &CudaConfig,
    page_bytes: u64,
    aside: u64,
) -> Result<u32, CudaError> {
    let bytes = match config.kv {
        KvBudget::Pages(pages) => return Ok(pages),
        KvBudget::MemoryFraction(fraction) => {
            let (free, total) = device.memory()?;
            let share = (total as f64 * fraction) as u64;
            left(share, free, memory::allocated(), aside)
        }
    };
    match u32::try_from(bytes / page_bytes) {
        Ok(0) => Err(CudaError::Shape(format!("{bytes} bytes hold no page of {page_bytes} bytes"))),
        Ok(pages) => Ok(pages),
        Err(_) => Ok(u32::MAX - 1),
    }
}

/// Bytes for the pool, of a process' share of the device's memory and of what is free of it all.
fn left(share: u64, free: u64, allocated: u64, aside: u64) -> u64 {
    share.saturating_sub(allocated + aside).min(free.saturating_sub(RESERVE_BYTES + aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_set_aside_is_of_the_share_and_of_what_is_free() {
        assert_eq!(left(70 * GIB, 60 * GIB, 16 * GIB, 0), 54 * GIB);
        assert_eq!(left(70 * GIB, 60 * GIB, 16 * GIB, GIB), 53 * GIB);
        // A share beyond what is free.
        let pool = left(79 * GIB, 60 * GIB, 16 * GIB, GIB);
        assert_eq!(pool + RESERVE_BYTES + GIB, 60 * GIB);
        assert_eq!(left(GIB, GIB, GIB, GIB), 0);
    }
}
