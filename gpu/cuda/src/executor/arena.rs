//! What a step copies to the device besides its block.

use crate::{CudaError, Device, Element, PinnedBuffer, View};

/// Page-locked memory of one step, handed out piece by piece. It may begin anew once that step has been collected.
#[derive(Debug)]
pub(super) struct Arena {
    words: PinnedBuffer<u32>,
    len: usize,
    used: usize,
}

impl Arena {
    /// Room for `len` words.
    pub fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        Ok(Self { words: device.allocate_pinned(len)?, len, used: 0 })
    }

    pub fn begin(&mut self) {
        self.used = 0;
    }

    /// Has `fill` write `len` elements, of at most 4 bytes alignment and zeros at first, and starts to copy them to the start of
    /// `target`. Waits for the device only if the step has used up its room.
    pub fn copy<T: Element>(
        &mut self,
        device: &Device,
        target: View<'_, T>,
        len: usize,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<(), CudaError> {
        if len == 0 {
            return Ok(());
        }
        let size = (len * size_of::<T>()).div_ceil(size_of::<u32>());
        if self.used + size > self.len {
            device.synchronize()?;
            self.used = 0;
        }
        let words = &mut self.words.as_mut_slice()[self.used..][..size];
        self.used += size;
        words.fill(0);
        let elements = &mut bytemuck::cast_slice_mut(words)[..len];
        fill(elements);
        device.write_async(target, elements)
    }
}
