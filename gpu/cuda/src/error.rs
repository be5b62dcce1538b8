use std::path::PathBuf;

use cudarc::{cublaslt::result::CublasError, driver::DriverError, nvrtc::result::NvrtcError};
use models::ExecutorError;

use crate::{KernelFile, Library};

/// What can go wrong with a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("{0} is not installed or not on the loader's path")]
    Missing(Library),
    #[error("no GPU number {ordinal}, there are {count}")]
    NoSuchDevice { ordinal: usize, count: usize },
    #[error("{name} has compute capability {}.{}, and the kernels are for 9.x (Hopper) alone", capability.0, capability.1)]
    Capability { name: String, capability: (u32, u32) },
    /// Most of these are sticky: the context is lost and the process must end.
    #[error("cuda: {}", describe(.0))]
    Driver(#[from] DriverError),
    #[error("cublas: {0}")]
    Blas(#[from] CublasError),
    #[error("nvrtc: {0}")]
    Nvrtc(#[from] NvrtcError),
    #[error("cannot compile {file}: {log}")]
    Compile { file: KernelFile, log: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// An operation was asked for with sizes that its kernel does not take.
    #[error("{0}")]
    Shape(String),
    #[error(transparent)]
    Model(#[from] models::ModelError),
    #[error("not supported on a gpu yet: {0}")]
    Unsupported(String),
}

impl CudaError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Whatever fails while steps run has left the device in an unknown state.
impl From<CudaError> for ExecutorError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Name and text of a driver error; asking the driver for them is fine, since the error came from it.
fn describe(error: &DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name} ({text})"),
        _ => format!("error {:?}", error.0),
    }
}
