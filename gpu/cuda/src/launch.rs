use std::ffi::c_void;

use cudarc::driver::{CudaFunction, CudaStream, sys};

use crate::{CudaError, Device, Element, View};

/// How many blocks of how many threads, their dynamic shared memory, and when they begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    pub begins: Begins,
}

/// When the blocks of a launch begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    /// While its predecessor still runs; it waits for it where it needs to (programmatic dependent launch).
    Early,
    /// Once all before it has ended: what its successors read early is then settled.
    Alone,
    /// The same, and none before all have room at once, since they wait for each other (cooperative launch).
    Together,
}

impl Shape {
    pub fn new(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, threads, shared_bytes: 0, begins: Begins::Early }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: bytes as u32, ..self }
    }

    pub fn alone(self) -> Self {
        Self { begins: Begins::Alone, ..self }
    }

    pub fn together(self) -> Self {
        Self { begins: Begins::Together, ..self }
    }

    /// Whether there is nothing to start.
    fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    fn attribute(&self) -> Option<sys::CUlaunchAttribute> {
        let (id, value) = match self.begins {
            Begins::Early => (
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
            Begins::Alone => return None,
            Begins::Together => (
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                sys::CUlaunchAttributeValue { cooperative: 1 },
            ),
        };
        Some(sys::CUlaunchAttribute { id, pad: [0; 4], value })
    }
}

/// A kernel argument of up to 8 bytes, in the low bytes of a word (little-endian, as every host of a GPU is).
pub(crate) trait Argument {
    fn word(&self) -> u64;
}

impl Argument for u32 {
    fn word(&self) -> u64 {
        u64::from(*self)
    }
}
impl Argument for i32 {
    fn word(&self) -> u64 {
        u64::from(*self as u32)
    }
}
impl Argument for u64 {
    fn word(&self) -> u64 {
        *self
    }
}
impl Argument for f32 {
    fn word(&self) -> u64 {
        u64::from(self.to_bits())
    }
}
impl<T: Element> Argument for View<'_, T> {
    fn word(&self) -> u64 {
        self.address()
    }
}
/// `None` is a null pointer.
impl<T: Element> Argument for Option<View<'_, T>> {
    fn word(&self) -> u64 {
        self.map_or(0, |view| view.address())
    }
}

/// The words of a kernel's arguments, in order.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        [$($crate::launch::Argument::word(&$argument)),*]
    };
}
pub(crate) use arguments;

/// Most arguments that a kernel here has.
const MAX_ARGUMENTS: usize = 24;

impl Device {
    /// Starts a kernel on the device's stream.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature, and it stays within the views' memory.
    pub(crate) unsafe fn launch<const N: usize>(
        &self,
        kernel: &str,
        shape: Shape,
        arguments: [u64; N],
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's duty.
        unsafe { self.launch_mapped::<(), N>(kernel, shape, &[], arguments) }
    }

    /// The same for a kernel whose first arguments are structures, such as tensor maps.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub(crate) unsafe fn launch_mapped<S, const N: usize>(
        &self,
        kernel: &str,
        shape: Shape,
        structures: &[S],
        arguments: [u64; N],
    ) -> Result<(), CudaError> {
        if shape.is_empty() {
            return Ok(());
        }
        let function = self.kernels().get(kernel);
        let shape = Shape { begins: self.queue().next(shape.begins), ..shape };
        // SAFETY: the caller's duty.
        unsafe { start(function, self.stream(), shape, structures, arguments)? };
        self.count_launch();
        Ok(())
    }
}

/// Starts a kernel on any stream of its context.
///
/// # Safety
/// As [`Device::launch`].
pub(crate) unsafe fn start<S, const N: usize>(
    function: &CudaFunction,
    stream: &CudaStream,
    shape: Shape,
    structures: &[S],
    mut arguments: [u64; N],
) -> Result<(), CudaError> {
    if shape.is_empty() {
        return Ok(());
    }
    let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
    let structures = structures.iter().map(|structure| std::ptr::from_ref(structure).cast_mut().cast());
    let words = arguments.iter_mut().map(|word| std::ptr::from_mut(word).cast());
    assert!(structures.len() + words.len() <= MAX_ARGUMENTS, "too many arguments for a kernel");
    for (pointer, argument) in pointers.iter_mut().zip(structures.chain(words)) {
        *pointer = argument;
    }
    let mut attribute = shape.attribute();
    let config = sys::CUlaunchConfig {
        gridDimX: shape.grid[0],
        gridDimY: shape.grid[1],
        gridDimZ: shape.grid[2],
        blockDimX: shape.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shape.shared_bytes,
        hStream: stream.cu_stream(),
        numAttrs: attribute.is_some().into(),
        attrs: attribute.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut),
    };
    let function = function.cu_function();
    // SAFETY: config, attribute and argument words live until the call returns, which copies them; that the arguments
    // fit the kernel is the caller's duty.
    unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
        .result()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Argument;

    #[test]
    fn arguments_lie_in_the_low_bytes() {
        assert_eq!((-1i32).word(), 0xffff_ffff);
        assert_eq!(1.0f32.word(), 0x3f80_0000);
        assert_eq!(None::<crate::View<'_, f32>>.word(), 0);
    }
}
