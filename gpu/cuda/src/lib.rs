//! The CUDA executor: kernels compiled at start by NVRTC, launched by one thread.
//!
//! Nothing of CUDA is needed to build this crate, and nothing of it panics where CUDA is absent: every library is
//! looked for before its first call ([`Library`]) and a missing one is an error.
//!
//! A [`Device`] owns a context, its streams and the compiled kernels; its methods (in [`ops`]) start one operation each. A
//! [`CudaExecutor`] makes steps of them.

mod blas;
mod compiler;
mod device;
mod error;
mod executor;
mod graph;
mod kernels;
mod launch;
mod library;
mod memory;
pub mod ops;
mod queue;
mod sizes;
mod tensor_map;
mod timer;
mod transfer;

pub use blas::{Algorithm, Product};
pub use compiler::{CompileMode, WORKER_FLAG, nvrtc_version, nvrtc_worker};
pub use device::{Device, DeviceConfig, DeviceInfo, count_gpus, require_gpu};
pub use error::CudaError;
pub use executor::{CudaConfig, CudaExecutor, KvBudget, KvFormat, WeightFormat};
pub use graph::Graph;
pub use kernels::KernelFile;
pub use library::Library;
pub use memory::{Buffer, Element, PinnedBuffer, View};
pub use timer::Timer;
pub use transfer::SharedMemory;
