use std::{io, sync::Arc};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, result,
    sys::{self, CUipcMem_flags, CUipcMemHandle},
};
use kv::transfer::{DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, HostRoom, Span};
use parking_lot::Mutex;

use crate::{
    Buffer, CudaError, Device, PinnedBuffer,
    launch::{Shape, arguments, start},
    memory::complain,
};

/// Spans whose checksums are computed at once.
const SPANS: usize = 64;
/// Blocks that share a span.
const BLOCKS: u32 = 32;

/// Memory of a GPU that processes on one host share, by CUDA IPC. Usable on any thread.
#[derive(Debug)]
pub struct SharedMemory {
    context: Arc<CudaContext>,
    sum: CudaFunction,
}

impl SharedMemory {
    pub(crate) fn new(device: &Device) -> Self {
        let sum = device.kernels().get("pages_sum").clone();
        Self { context: device.context().clone(), sum }
    }

    fn slab(
        &self,
        memory: Memory,
        handle: DeviceHandle,
        bytes: u64,
    ) -> Result<Arc<dyn DeviceSlab>, CudaError> {
        let scratch = Scratch {
            stream: self.context.new_stream()?,
            spans: PinnedBuffer::new(&self.context, SPANS)?,
            sums: Buffer::new(&self.context, SPANS)?,
            read: PinnedBuffer::new(&self.context, SPANS)?,
        };
        let (context, sum) = (self.context.clone(), self.sum.clone());
        Ok(Arc::new(Slab { handle, bytes, context, sum, scratch: Mutex::new(scratch), memory }))
    }

    fn share(&self, bytes: u64) -> Result<Arc<dyn DeviceSlab>, CudaError> {
        let buffer = Buffer::<u8>::new(&self.context, bytes as usize)?;
        let mut handle = CUipcMemHandle { reserved: [0; DeviceHandle::BYTES] };
        // SAFETY: the context is current since the allocation, whose address this is.
        unsafe { sys::cuIpcGetMemHandle(&mut handle, buffer.view().address()) }.result()?;
        self.slab(Memory::Own(buffer), DeviceHandle(handle.reserved.map(|byte| byte as u8)), bytes)
    }

    fn map(&self, handle: &DeviceHandle) -> Result<Arc<dyn DeviceSlab>, CudaError> {
        self.context.bind_to_thread()?;
        let theirs = CUipcMemHandle { reserved: handle.0.map(|byte| byte as i8) };
        let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let (mut address, mut len) = (0, 0);
        // SAFETY: the context is current; the driver checks the handle.
        unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, theirs, flags) }.result()?;
        let memory = Memory::Mapped { address, context: self.context.clone() };
        // SAFETY: the address was mapped just now.
        unsafe { sys::cuMemGetAddressRange_v2(std::ptr::null_mut(), &mut len, address) }.result()?;
        self.slab(memory, *handle, len as u64)
    }
}

impl DeviceMemory for SharedMemory {
    fn allocate(&self, bytes: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        self.share(bytes).map_err(io::Error::other)
    }

    fn open(&self, handle: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        self.map(handle).map_err(io::Error::other)
    }

    fn room(&self, bytes: usize) -> io::Result<Box<dyn HostRoom>> {
        Ok(Box::new(PinnedBuffer::<u8>::new(&self.context, bytes).map_err(io::Error::other)?))
    }
}

impl HostRoom for PinnedBuffer<u8> {
    fn address(&self) -> DeviceAddress {
        DeviceAddress(self.address())
    }

    fn bytes(&self) -> &[u8] {
        self.as_slice()
    }
}

/// A slab and what its calls need.
#[derive(Debug)]
struct Slab {
    handle: DeviceHandle,
    bytes: u64,
    context: Arc<CudaContext>,
    sum: CudaFunction,
    scratch: Mutex<Scratch>,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Own(Buffer<u8>),
    Mapped { address: u64, context: Arc<CudaContext> },
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Self::Mapped { address, context } = self else { return };
        // SAFETY: mapped once, closed once; whoever stored there has waited for it.
        let closed =
            context.bind_to_thread().and_then(|()| unsafe { sys::cuIpcCloseMemHandle(*address) }.result());
        complain(closed, "cannot unmap another process' device memory");
    }
}

#[derive(Debug)]
struct Scratch {
    stream: Arc<CudaStream>,
    spans: PinnedBuffer<DeviceSpan>,
    sums: Buffer<u64>,
    read: PinnedBuffer<u64>,
}

/// As the kernel reads it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DeviceSpan {
    begin: u64,
    words: u64,
    seed: u64,
    unused: u64,
}

impl Slab {
    fn sums(&self, scratch: &mut Scratch, spans: &[Span]) -> Result<Vec<u64>, CudaError> {
        let Scratch { stream, spans: told, sums, read } = scratch;
        for (to, span) in told.as_mut_slice().iter_mut().zip(spans) {
            let begin = self.address().at(span.at).0;
            *to = DeviceSpan { begin, words: span.bytes / 16, seed: span.seed, unused: 0 };
        }
        self.context.bind_to_thread()?;
        let sums = sums.view();
        let arguments = arguments![told.address(), sums];
        let shape = Shape::new([BLOCKS, spans.len() as u32, 1], 256).alone();
        // SAFETY: spans lie in the slab (checked by the caller); everything lives until the stream has passed it, below.
        unsafe {
            result::memset_d8_async(sums.address(), 0, sums.bytes(), stream.cu_stream())?;
            start(&self.sum, stream, shape, &[(); 0], arguments)?;
            let read = &mut read.as_mut_slice()[..spans.len()];
            result::memcpy_dtoh_async(read, sums.address(), stream.cu_stream())?;
        }
        stream.synchronize()?;
        Ok(read.as_slice()[..spans.len()].to_vec())
    }

    fn holds(&self, at: u64, bytes: u64) -> io::Result<()> {
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "outside the slab"))
    }
}

impl DeviceSlab for Slab {
    fn handle(&self) -> DeviceHandle {
        self.handle
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress(match &self.memory {
            Memory::Own(buffer) => buffer.view().address(),
            Memory::Mapped { address, .. } => *address,
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.holds(at, bytes.len() as u64)?;
        let scratch = self.scratch.lock();
        let stored = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: the target holds the bytes, which live until the stream has passed.
            unsafe { result::memcpy_htod_async(self.address().at(at).0, bytes, scratch.stream.cu_stream()) }?;
            scratch.stream.synchronize()
        });
        stored.map_err(|error| io::Error::other(CudaError::from(error)))
    }

    fn checksums(&self, spans: &[Span]) -> io::Result<Vec<u64>> {
        spans.iter().try_for_each(|span| self.holds(span.at, span.bytes))?;
        let mut scratch = self.scratch.lock();
        let mut all = Vec::with_capacity(spans.len());
        for some in spans.chunks(SPANS) {
            all.extend(self.sums(&mut scratch, some).map_err(io::Error::other)?);
        }
        Ok(all)
    }
}
