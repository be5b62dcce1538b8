//! From kernel sources to machine code: NVRTC in child processes (inside one process it compiles one file at a time),
//! results kept on disk under a hash of everything that went in.

use std::{path::PathBuf, process::Child, time::Instant};

use crate::{CudaError, KernelFile, Library};

mod cache;
mod nvrtc;
mod worker;

pub use nvrtc::nvrtc_version;
pub use worker::{WORKER_FLAG, nvrtc_worker};

use cache::Cache;

/// Where compilation happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompileMode {
    /// In children of this executable, all files at once; its main calls [`nvrtc_worker`].
    Workers(PathBuf),
    InProcess,
}

/// All kernels for one architecture.
pub(crate) struct Cubins {
    /// One for each file.
    pub images: Vec<(KernelFile, Vec<u8>)>,
    /// Names sources, options and compiler: equal digests compute equal bits on equal devices.
    pub digest: String,
}

/// From the cache, or compiled now.
pub(crate) fn compile_all(
    arch: &str,
    cache_dir: &std::path::Path,
    mode: &CompileMode,
) -> Result<Cubins, CudaError> {
    Library::Nvrtc.require()?;
    let cache = Cache::open(cache_dir, arch, nvrtc_version()?)?;
    let missing: Vec<KernelFile> = KernelFile::ALL.into_iter().filter(|&file| !cache.holds(file)).collect();
    if !missing.is_empty() {
        let begin = Instant::now();
        let total = missing.len();
        let progress = |done: usize| tracing::info!(target: "progress", done, total, "compiling kernels");
        progress(0);
        match mode {
            CompileMode::Workers(executable) => {
                let children: Vec<(KernelFile, Child)> = missing
                    .iter()
                    .map(|&file| Ok((file, worker::spawn(executable, file, arch, &cache.path(file))?)))
                    .collect::<Result<_, CudaError>>()?;
                for (index, (file, child)) in children.into_iter().enumerate() {
                    worker::wait(file, child)?;
                    progress(index + 1);
                }
            }
            CompileMode::InProcess => {
                for (index, &file) in missing.iter().enumerate() {
                    cache::store(&cache.path(file), &nvrtc::compile(file, arch)?)?;
                    progress(index + 1);
                }
            }
        }
        tracing::info!(elapsed = ?begin.elapsed(), arch, files = total, "compiled kernels");
    }
    let images = KernelFile::ALL.into_iter().map(|file| Ok((file, cache.read(file)?)));
    Ok(Cubins { images: images.collect::<Result<_, CudaError>>()?, digest: cache.digest() })
}
