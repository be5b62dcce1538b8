use std::{cell::Cell, path::PathBuf, rc::Rc, sync::Arc, time::Instant};

use cudarc::driver::{
    CudaContext, CudaStream, result,
    sys::{self, CUdevice_attribute},
};

use crate::{
    Buffer, CompileMode, CudaError, Element, Library, PinnedBuffer, SharedMemory, View, blas::Blas, compiler,
    kernels::Kernels, queue::Queue,
};

/// Which GPU, and how its kernels come to be.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    pub ordinal: usize,
    /// Compiled kernels are kept here.
    pub cache_dir: PathBuf,
    pub compile: CompileMode,
}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    pub memory_bytes: u64,
}

/// One GPU as its device thread sees it: context, streams, compiled kernels. Made and used on
/// that thread alone.
#[derive(Debug)]
pub struct Device {
    gpu: Rc<Gpu>,
    /// Where its work goes: the first, but for the second of what [`Device::beside`] starts.
    queue: usize,
}

#[derive(Debug)]
struct Gpu {
    info: DeviceInfo,
    kernels: Kernels,
    digest: String,
    blas: Option<Blas>,
    launched: Cell<u64>,
    queues: [Queue; 2],
    context: Arc<CudaContext>,
}

impl Device {
    /// Opens GPU `config.ordinal` and compiles or loads the kernels.
    ///
    /// # Errors
    /// If the driver, the compiler (needed also to name cached kernels) or the GPU is not there, the compute
    /// capability of the GPU is not 9.x, or a kernel does not compile.
    pub fn open(config: &DeviceConfig) -> Result<Self, CudaError> {
        let began = Instant::now();
        Library::CublasLt.load_ahead();
        require_gpu(config.ordinal)?;
        let initialised = Instant::now();
        let context = CudaContext::new(config.ordinal)?;
        // SAFETY: no memory was allocated yet. What the streams do is ordered by `beside`, which joins them before and after,
        // and by events of this crate, not by those that are turned off, which captures into graphs do not allow.
        unsafe { context.disable_event_tracking() };
        let queues = [Queue::new(&context)?, Queue::new(&context)?];
        let info = describe(&context)?;
        let opened = Instant::now();
        let arch = format!("sm_{}{}a", info.capability.0, info.capability.1);
        let cubins = compiler::compile_all(&arch, &config.cache_dir, &config.compile)?;
        let kernels = Kernels::load(&context, cubins.images)?;
        let loaded = Instant::now();
        let blas = if Library::CublasLt.is_present() { Some(Blas::new(&context, &info.name)?) } else { None };
        let gpu = Gpu { info, kernels, digest: cubins.digest, blas, launched: Cell::new(0), queues, context };
        tracing::info!(
            name = gpu.info.name,
            cublaslt = gpu.blas.is_some(),
            initialised_in = ?initialised - began,
            context_in = ?opened - initialised,
            kernels_in = ?loaded - opened,
            cublaslt_in = ?loaded.elapsed(),
            "opened gpu"
        );
        Ok(Self { gpu: Rc::new(gpu), queue: 0 })
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self.gpu.context.mem_get_info()?;
        Ok((free as u64, total as u64))
    }

    pub fn allocate<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::new(&self.gpu.context, len)
    }

    pub fn allocate_pinned<T: Element>(&self, len: usize) -> Result<PinnedBuffer<T>, CudaError> {
        PinnedBuffer::new(&self.gpu.context, len)
    }

    /// A buffer with a copy of `data`; waits for it.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.allocate(data.len())?;
        self.write(buffer.view(), data)?;
        Ok(buffer)
    }

    /// Copies `data` to the start of `target`; waits for it.
    pub fn write<T: Element>(&self, target: View<'_, T>, data: &[T]) -> Result<(), CudaError> {
        self.write_async(target, data)?;
        self.synchronize()
    }

    /// Copies a view to the host; waits for it.
    pub fn read<T: Element>(&self, source: View<'_, T>) -> Result<Vec<T>, CudaError> {
        let mut data = vec![T::zeroed(); source.len()];
        self.read_async(&mut data, source)?;
        self.synchronize()?;
        Ok(data)
    }

    /// Starts a copy to the device, in order with launches. `data` must not change until it has been made, if it is pinned; other
    /// memory is staged before this returns.
    pub(crate) fn write_async<T: Element>(&self, target: View<'_, T>, data: &[T]) -> Result<(), CudaError> {
        assert!(data.len() <= target.len(), "copy of {} elements into {}", data.len(), target.len());
        self.gpu.context.bind_to_thread()?;
        // SAFETY: the target holds at least as many elements; both sides outlive the call as the contract says.
        unsafe { result::memcpy_htod_async(target.address(), data, self.stream().cu_stream())? };
        Ok(())
    }

    /// Starts a copy of whole rows of `columns` elements to rows `first`, `first + step`, … of the target. As
    /// [`Device::write_async`].
    pub(crate) fn write_rows_async<T: Element>(
        &self,
        target: View<'_, T>,
        rows: &[T],
        columns: usize,
        first: usize,
        step: usize,
    ) -> Result<(), CudaError> {
        let (count, width) = (rows.len() / columns, columns * size_of::<T>());
        if step == 1 || count < 2 {
            return self.write_async(target.slice(first * columns..), rows);
        }
        let last = first + (count - 1) * step;
        assert!((last + 1) * columns <= target.len(), "row {last} of {} elements", target.len());
        self.gpu.context.bind_to_thread()?;
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: rows.as_ptr().cast(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: width,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: target.address() + (first * width) as u64,
            dstArray: std::ptr::null_mut(),
            dstPitch: step * width,
            WidthInBytes: width,
            Height: count,
        };
        // SAFETY: source and target hold the rows; both outlive the call as the contract says.
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream().cu_stream()) }.result()?;
        Ok(())
    }

    /// Starts a copy to the host, in order with launches; `data` is complete once it has been made.
    pub(crate) fn read_async<T: Element>(
        &self,
        data: &mut [T],
        source: View<'_, T>,
    ) -> Result<(), CudaError> {
        assert!(data.len() <= source.len(), "copy of {} elements from {}", data.len(), source.len());
        self.gpu.context.bind_to_thread()?;
        // SAFETY: the source holds at least as many elements; both sides outlive the call as the contract says.
        unsafe { result::memcpy_dtoh_async(data, source.address(), self.stream().cu_stream())? };
        Ok(())
    }

    /// Starts setting every byte of a view.
    pub fn fill_bytes<T: Element>(&self, target: View<'_, T>, byte: u8) -> Result<(), CudaError> {
        self.gpu.context.bind_to_thread()?;
        // SAFETY: the view's bytes are allocated.
        unsafe {
            result::memset_d8_async(target.address(), byte, target.bytes(), self.stream().cu_stream())?;
        }
        Ok(())
    }

    /// Waits for all work started so far.
    ///
    /// # Errors
    /// Also those of that work: a device error shows at the first wait after it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream().synchronize()?;
        Ok(self.gpu.context.check_err()?)
    }

    /// Kernels started so far, those of the library included.
    pub fn launches(&self) -> u64 {
        self.gpu.launched.get()
    }

    /// The memory of this GPU as processes share it.
    pub fn shared_memory(&self) -> SharedMemory {
        SharedMemory::new(self)
    }

    pub(crate) fn count_launch(&self) {
        self.gpu.launched.set(self.gpu.launched.get() + 1);
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.gpu.context
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.gpu.queues[self.queue]
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        self.queue().stream()
    }

    /// Starts two halves that run beside each other, after all that was started before; what is started next begins once
    /// both have ended. `start` is called with the device and the number of each; neither writes what the other reads or
    /// writes.
    pub(crate) fn beside(
        &self,
        start: impl Fn(&Self, usize) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let [first, second] = &self.gpu.queues;
        first.part(second)?;
        for queue in 0..2 {
            start(&Self { gpu: self.gpu.clone(), queue }, queue)?;
        }
        first.meet(second)
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.gpu.kernels
    }

    /// Names the kernels and how they were compiled.
    pub(crate) fn digest(&self) -> &str {
        &self.gpu.digest
    }

    /// cuBLASLt, if it was found.
    pub(crate) fn blas(&self) -> Option<&Blas> {
        self.gpu.blas.as_ref()
    }
}

/// How many GPUs there are; initialises the driver, and opens nothing.
///
/// # Errors
/// If driver or compiler are missing, or the driver fails.
pub fn count_gpus() -> Result<usize, CudaError> {
    Library::Nvrtc.load_ahead();
    Library::Driver.require()?;
    result::init()?;
    Library::Nvrtc.require()?;
    Ok(result::device::get_count()? as usize)
}

/// Whether GPU `ordinal` can run the kernels.
///
/// # Errors
/// As of [`count_gpus`], and if there is no such GPU or its compute capability is not 9.x.
pub fn require_gpu(ordinal: usize) -> Result<(), CudaError> {
    let count = count_gpus()?;
    if ordinal >= count {
        return Err(CudaError::NoSuchDevice { ordinal, count });
    }
    let gpu = result::device::get(ordinal as i32)?;
    // SAFETY: `gpu` is a device of the driver, which is initialised.
    let attribute = |attribute| unsafe { result::device::get_attribute(gpu, attribute) };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
    require_capability((major, minor), || Ok(result::device::get_name(gpu)?))
}

/// The kernels use what only sm_90a has.
fn require_capability(
    capability: (u32, u32),
    name: impl FnOnce() -> Result<String, CudaError>,
) -> Result<(), CudaError> {
    if capability.0 == 9 { Ok(()) } else { Err(CudaError::Capability { name: name()?, capability }) }
}

fn describe(context: &Arc<CudaContext>) -> Result<DeviceInfo, CudaError> {
    let (major, minor) = context.compute_capability()?;
    let multiprocessors = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(DeviceInfo {
        name: context.name()?,
        capability: (major as u32, minor as u32),
        multiprocessors: multiprocessors as u32,
        memory_bytes: context.total_mem()? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_before_and_after_hopper_are_refused_by_name() {
        let require = |capability| require_capability(capability, || Ok("Some GPU".to_owned()));
        assert!(require((9, 0)).is_ok());
        for (capability, named) in [((8, 9), "8.9"), ((10, 0), "10.0"), ((12, 0), "12.0")] {
            let error = require(capability).unwrap_err().to_string();
            let expected = format!(
                "Some GPU has compute capability {named}, and the kernels are for 9.x (Hopper) alone"
            );
            assert_eq!(error, expected);
        }
    }
}
