use std::ffi::{CStr, CString};

use cudarc::nvrtc::{result, sys};

use crate::{CudaError, KernelFile, Library, sizes};

/// Options of every compilation.
pub(super) fn options(arch: &str) -> Vec<String> {
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--generate-line-info".into()];
    options.into_iter().chain(sizes::ALL.iter().map(|(name, size)| format!("-D{name}={size}"))).collect()
}

/// Major and minor version of the NVRTC library found.
///
/// # Errors
/// If there is none.
pub fn nvrtc_version() -> Result<(u32, u32), CudaError> {
    Library::Nvrtc.require()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both pointers are valid for the call.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result()?;
    Ok((major as u32, minor as u32))
}

/// Machine code of one file. NVRTC must be present.
pub(super) fn compile(file: KernelFile, arch: &str) -> Result<Vec<u8>, CudaError> {
    let source = CString::new(file.source()).map_err(|_| failure(file, "the source holds a zero byte"))?;
    let name = CString::new(file.name()).map_err(|_| failure(file, "the name holds a zero byte"))?;
    let program = Program(result::create_program(&source, Some(&name))?);
    // SAFETY: the program was created above and lives until the end of this function.
    let compiled = unsafe { result::compile_program(program.0, &options(arch)) };
    if let Err(error) = compiled {
        return Err(failure(file, &program.log().unwrap_or_else(|| error.to_string())));
    }
    program.cubin()
}

fn failure(file: KernelFile, log: &str) -> CudaError {
    CudaError::Compile { file, log: log.trim_end().to_owned() }
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> Option<String> {
        // SAFETY: the program is alive; the log ends with a zero byte.
        let log = unsafe { result::get_program_log(self.0) }.ok()?;
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        CStr::from_bytes_until_nul(&bytes).ok().map(|log| log.to_string_lossy().into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, CudaError> {
        let mut size = 0;
        // SAFETY: the program is alive and compiled for a real architecture.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) }.result()?;
        let mut image = vec![0u8; size];
        // SAFETY: as above, and the buffer holds `size` bytes.
        unsafe { sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()) }.result()?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by create_program, destroyed once.
        if let Err(error) = unsafe { result::destroy_program(self.0) } {
            tracing::warn!(%error, "cannot destroy an nvrtc program");
        }
    }
}
