use half::bf16;

use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
};

/// Fills a view with pseudo-random numbers in (-scale, scale).
#[derive(Debug, Clone, Copy)]
pub struct FillBf16<'a> {
    pub out: View<'a, bf16>,
    pub seed: u32,
    pub scale: f32,
}

impl Device {
    /// Reads all of `data` once: its time gives the read rate of the memory.
    pub fn read_all(&self, data: View<'_, u8>, sink: View<'_, u32>) -> Result<(), CudaError> {
        super::check_len("sink", sink, 1)?;
        let arguments = arguments![data, (data.len() / 16) as u64, sink];
        // SAFETY: signature of read_all; it reads whole 16-byte words of `data`.
        unsafe {
            self.launch("read_all", Shape::new([4 * self.info().multiprocessors, 1, 1], 512), arguments)
        }
    }

    pub fn fill_bf16(&self, op: FillBf16<'_>) -> Result<(), CudaError> {
        let arguments = arguments![op.out, op.out.len() as u64, op.seed, op.scale];
        // SAFETY: signature of fill_bf16; it writes the view's elements.
        unsafe {
            self.launch("fill_bf16", Shape::new([8 * self.info().multiprocessors, 1, 1], 256), arguments)
        }
    }
}
