use std::{fmt, sync::OnceLock};

use crate::CudaError;

/// A shared library of CUDA, loaded when it is first asked for. Calling into an absent one would panic, so everything
/// here goes through [`Library::require`] first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    Driver,
    Nvrtc,
    CublasLt,
}

impl Library {
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// Whether the loader finds it. If so, it stays loaded: opening one takes tens of milliseconds.
    pub fn is_present(self) -> bool {
        static LOADED: [OnceLock<bool>; 3] = [const { OnceLock::new() }; 3];
        // SAFETY: these only open the library, which runs its initialisers and nothing else.
        let load = || unsafe {
            match self {
                Self::Driver => cudarc::driver::sys::is_culib_present() && kept(cudarc::driver::sys::culib()),
                Self::Nvrtc => cudarc::nvrtc::sys::is_culib_present() && kept(cudarc::nvrtc::sys::culib()),
                Self::CublasLt => {
                    cudarc::cublaslt::sys::is_culib_present() && kept(cudarc::cublaslt::sys::culib())
                }
            }
        };
        *LOADED[self as usize].get_or_init(load)
    }

    /// Loads it on a thread of its own, beside what the caller does until it needs it.
    pub fn load_ahead(self) {
        std::thread::spawn(move || self.is_present());
    }

    /// # Errors
    /// [`CudaError::Missing`] if the loader does not find it.
    pub fn require(self) -> Result<(), CudaError> {
        if self.is_present() { Ok(()) } else { Err(CudaError::Missing(self)) }
    }
}

/// Handles of the bindings are never closed.
fn kept<T>(_: &'static T) -> bool {
    true
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Driver => "libcuda",
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_is_an_error_that_names_it() {
        for library in Library::ALL.into_iter().filter(|library| !library.is_present()) {
            let error = library.require().unwrap_err().to_string();
            assert!(error.contains(&library.to_string()), "{error}");
        }
    }
}
