//! Whole pages between the KV pool and the host.

use cudarc::driver::{CudaEvent, sys::CUevent_flags};

use crate::{Buffer, CudaError, Device, PinnedBuffer, transfer::PagePool};

/// Pages that may be on their way to the device at once.
const STAGED_PAGES: usize = 4;

/// The KV pool as pages lie in it: a page has one part in each layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool<'a> {
    /// [layers, pages, layer_bytes]
    pub kv: &'a Buffer<u8>,
    pub layers: usize,
    pub layer_bytes: usize,
}

impl<'a> Pool<'a> {
    pub fn pages(&self) -> PagePool<'a> {
        PagePool { bytes: self.kv.view().cast(), layers: self.layers, layer_bytes: self.layer_bytes }
    }

    /// Where the parts of a page lie in the pool, in bytes, layer after layer.
    fn parts(&self, page: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (layer_bytes, stride) = (self.layer_bytes, self.kv.len() / self.layers);
        (0..self.layers).map(move |layer| {
            let start = layer * stride + page * layer_bytes;
            start..start + layer_bytes
        })
    }
}

/// Page-locked room for pages on their way, so that a page written does not wait for the steps in flight.
#[derive(Debug)]
pub(super) struct Staging {
    places: Vec<Place>,
    next: usize,
}

#[derive(Debug)]
struct Place {
    bytes: PinnedBuffer<u8>,
    /// Passed once the page has left.
    left: CudaEvent,
}

impl Staging {
    pub fn new(device: &Device, page_bytes: usize) -> Result<Self, CudaError> {
        let place = || -> Result<_, CudaError> {
            Ok(Place {
                bytes: device.allocate_pinned(page_bytes)?,
                left: device.context().new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))?,
            })
        };
        Ok(Self { places: (0..STAGED_PAGES).map(|_| place()).collect::<Result<_, _>>()?, next: 0 })
    }

    /// Whether the next page would not wait for one before it.
    pub fn is_free(&self) -> bool {
        // An error shows when it is waited for.
        !matches!(self.places[self.next].left.try_is_complete(), Ok(false))
    }

    fn place(&mut self) -> Result<&mut Place, CudaError> {
        let index = self.next;
        self.next = (index + 1) % self.places.len();
        let place = &mut self.places[index];
        place.left.synchronize()?;
        Ok(place)
    }

    /// Waits for all that was started before.
    pub fn read(
        &mut self,
        device: &Device,
        pool: Pool<'_>,
        page: usize,
        to: &mut [u8],
    ) -> Result<(), CudaError> {
        let place = self.place()?;
        let kv = pool.kv.view();
        for (part, bytes) in
            pool.parts(page).zip(place.bytes.as_mut_slice().chunks_exact_mut(pool.layer_bytes))
        {
            device.read_async(bytes, kv.slice(part))?;
        }
        device.synchronize()?;
        to.copy_from_slice(place.bytes.as_slice());
        Ok(())
    }

    /// Takes effect in the order of the device's stream.
    pub fn write(
        &mut self,
        device: &Device,
        pool: Pool<'_>,
        page: usize,
        from: &[u8],
    ) -> Result<(), CudaError> {
        let place = self.place()?;
        place.bytes.as_mut_slice().copy_from_slice(from);
        let kv = pool.kv.view();
        for (part, bytes) in pool.parts(page).zip(place.bytes.as_slice().chunks_exact(pool.layer_bytes)) {
            device.write_async(kv.slice(part), bytes)?;
        }
        Ok(place.left.record(device.stream())?)
    }
}
