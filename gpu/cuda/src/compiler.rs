//! From kernel sources to machine code: NVRTC in child processes (inside one process it compiles one file at a time),
//! results kept on disk under a hash of everything that went in.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

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
pub(crate) fn compile_all(arch: &str, cache_dir: &Path, mode: &CompileMode) -> Result<Cubins, CudaError> {
    Library::Nvrtc.require()?;
    let cache = Cache::open(cache_dir, arch, nvrtc_version()?)?;
    let (mut images, mut missing) = (Vec::new(), Vec::new());
    for file in KernelFile::ALL {
        match cache.read(file)? {
            Some(image) => images.push((file, image)),
            None => missing.push(file),
        }
    }
    if !missing.is_empty() {
        let begin = Instant::now();
        let total = missing.len();
        let progress = |done: usize| tracing::info!(target: "progress", done, total, "compiling kernels");
        progress(0);
        match mode {
            CompileMode::Workers(executable) => in_workers(executable, &missing, &cache, progress)?,
            CompileMode::InProcess => {
                for (index, &file) in missing.iter().enumerate() {
                    cache::store(&cache.path(file), &nvrtc::compile(file, arch)?)?;
                    progress(index + 1);
                }
            }
        }
        tracing::info!(elapsed = ?begin.elapsed(), arch, files = total, "compiled kernels");
    }
    for file in missing {
        let lost = || CudaError::Compile { file, log: "its machine code did not reach the disk".to_owned() };
        images.push((file, cache.read(file)?.ok_or_else(lost)?));
    }
    Ok(Cubins { images, digest: cache.digest() })
}

/// Compiles files beside each other. Whatever fails, none is still at it when this returns.
fn in_workers(
    executable: &Path,
    files: &[KernelFile],
    cache: &Cache,
    progress: impl Fn(usize),
) -> Result<(), CudaError> {
    let spawn = |&file| (file, worker::spawn(executable, file, cache.arch(), &cache.path(file)));
    let children: Vec<_> = files.iter().map(spawn).collect();
    let mut failure = Ok(());
    for (index, (file, child)) in children.into_iter().enumerate() {
        let outcome = child.and_then(|child| worker::wait(file, child));
        failure = failure.and(outcome);
        progress(index + 1);
    }
    failure
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_worker_that_fails_is_named_once_all_others_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("worker");
        let script = "#!/bin/sh\n[ $2 = gemm.cu ] && { echo no >&2; exit 3; }\nsleep 0.2\n: >$4\n";
        fs::write(&executable, script).unwrap();
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        let cache = Cache::open(&folder.path().join("cache"), "sm_90a", (13, 0)).unwrap();
        let files = [KernelFile::Gemm, KernelFile::Qkv, KernelFile::Sample];
        let error = in_workers(&executable, &files, &cache, |_| ()).unwrap_err().to_string();
        assert!(error.contains("gemm.cu") && error.ends_with(": no"), "{error}");
        for other in &files[1..] {
            assert!(cache.path(*other).exists(), "{other}");
        }
    }
}
