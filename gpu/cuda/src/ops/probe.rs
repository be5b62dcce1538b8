use half::bf16;

use crate::{
    CudaError, Device, Timer, View,
    launch::{Shape, arguments},
};

/// Fills a view with pseudo-random numbers in (-scale, scale).
#[derive(Debug, Clone, Copy)]
pub struct FillBf16<'a> {
    pub out: View<'a, bf16>,
    pub seed: u32,
    pub scale: f32,
}

/// What is read to find the read rate: far more than the caches hold.
const READ_BYTES: usize = 4 << 30;
/// Times that it is read; the median counts.
const READS: usize = 9;

impl Device {
    /// Bytes a second that a kernel which does nothing else reads from the memory. Allocates 4 GiB meanwhile.
    pub fn read_rate(&self) -> Result<f64, CudaError> {
        let data = self.allocate::<u8>(READ_BYTES)?;
        let sink = self.allocate::<u32>(1)?;
        self.fill_bf16(FillBf16 { out: data.view().cast(), seed: 1, scale: 1.0 })?;
        let timer = Timer::new(self)?;
        let mut seconds = Vec::with_capacity(READS);
        for _ in 0..READS {
            timer.start(self)?;
            self.read_all(data.view(), sink.view())?;
            timer.stop(self)?;
            seconds.push(timer.seconds()?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(data.len() as f64 / seconds[READS / 2])
    }

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
