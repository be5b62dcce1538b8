//! One compilation in a child process: `executable --nvrtc-worker <file> <arch> <cubin to write>`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use super::{cache, nvrtc};
use crate::{CudaError, KernelFile, Library};

/// First argument of a process that is a compile worker.
pub const WORKER_FLAG: &str = "--nvrtc-worker";

pub(super) fn spawn(
    executable: &Path,
    file: KernelFile,
    arch: &str,
    cubin: &Path,
) -> Result<Child, CudaError> {
    Command::new(executable)
        .args([WORKER_FLAG, file.name(), arch])
        .arg(cubin)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CudaError::io(executable))
}

pub(super) fn wait(file: KernelFile, child: Child) -> Result<(), CudaError> {
    let Output { status, stderr, .. } = child.wait_with_output().map_err(CudaError::io(file.name()))?;
    if status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&stderr);
    Err(CudaError::Compile { file, log: format!("worker ended with {status}: {}", log.trim_end()) })
}

/// Does the work of a compile worker if `arguments` (those of the process, its name first) ask for it, and returns the
/// exit code; `None` if they do not. Any executable whose path is given to [`super::CompileMode::Workers`] calls this
/// first in its main.
pub fn nvrtc_worker(arguments: impl IntoIterator<Item = OsString>) -> Option<u8> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != WORKER_FLAG {
        return None;
    }
    let outcome = match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(file), Some(arch), Some(cubin)) => {
            run(&file.to_string_lossy(), &arch.to_string_lossy(), cubin.into())
        }
        _ => Err(CudaError::Shape("a compile worker needs a file, an architecture and a path".into())),
    };
    match outcome {
        Ok(()) => Some(0),
        Err(error) => {
            eprintln!("{error}");
            Some(1)
        }
    }
}

fn run(file: &str, arch: &str, cubin: PathBuf) -> Result<(), CudaError> {
    let file = KernelFile::named(file).ok_or_else(|| CudaError::Shape(format!("no kernel file {file}")))?;
    Library::Nvrtc.require()?;
    cache::store(&cubin, &nvrtc::compile(file, arch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(arguments: &[&str]) -> Option<u8> {
        nvrtc_worker(arguments.iter().map(OsString::from))
    }

    #[test]
    fn other_command_lines_are_left_alone() {
        assert_eq!(worker(&["stator"]), None);
        assert_eq!(worker(&["stator", "up", WORKER_FLAG]), None);
    }

    #[test]
    fn a_worker_without_its_arguments_fails() {
        assert_eq!(worker(&["stator", WORKER_FLAG, "gemm.cu"]), Some(1));
        assert_eq!(worker(&["stator", WORKER_FLAG, "no.cu", "sm_90a", "/dev/null"]), Some(1));
    }
}
