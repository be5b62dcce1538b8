use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// A model file that cannot be used: which file, and what about it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    pub path: PathBuf,
    pub kind: ErrorKind,
}

/// Names the field or tensor at fault; see the variants.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Something a model must have is not there; `help` says what to do about it.
    #[error("{what} is missing: {help}")]
    Missing { what: String, help: String },
    /// The file breaks its format.
    #[error("{field}: {reason}")]
    Malformed { field: String, reason: String },
    /// The file is sound, but asks for something that is not built.
    #[error("{field}: {reason} is not supported")]
    Unsupported { field: String, reason: String },
}

impl ErrorKind {
    pub(crate) fn missing(what: impl fmt::Display, help: impl fmt::Display) -> Self {
        Self::Missing { what: what.to_string(), help: help.to_string() }
    }

    pub(crate) fn malformed(field: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Malformed { field: field.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(field: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Unsupported { field: field.to_string(), reason: reason.to_string() }
    }
}

/// Attaches the file to an error found in its bytes.
pub(crate) trait InFile<T> {
    fn in_file(self, path: &Path) -> Result<T, Error>;
}

impl<T, E: Into<ErrorKind>> InFile<T> for Result<T, E> {
    fn in_file(self, path: &Path) -> Result<T, Error> {
        self.map_err(|kind| Error { path: path.to_owned(), kind: kind.into() })
    }
}
