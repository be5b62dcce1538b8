use std::path::{Path, PathBuf};

use crate::{
    error::{Error, ErrorKind, InFile},
    safetensors::{INDEX_FILE, SINGLE_FILE},
};

pub const CONFIG_FILE: &str = "config.json";

/// Where a model lies, and in which of the two layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A Hugging Face folder with config.json.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

impl Location {
    pub fn path(&self) -> &Path {
        let (Self::Folder(path) | Self::Gguf(path)) = self;
        path
    }
}

/// Finds the model at a path: a Hugging Face folder, a GGUF file, or a folder with just one GGUF file.
///
/// # Errors
/// If nothing is there, or it is neither, saying what was looked for.
pub fn locate(path: &Path) -> Result<Location, Error> {
    let metadata = std::fs::metadata(path);
    if !metadata.in_file(path)?.is_dir() {
        return if is_gguf(path) {
            Ok(Location::Gguf(path.to_owned()))
        } else {
            let help = "give a folder with config.json, or a file that ends in .gguf";
            Err(ErrorKind::missing("model", help)).in_file(path)
        };
    }
    if path.join(CONFIG_FILE).is_file() {
        return Ok(Location::Folder(path.to_owned()));
    }
    let entries = std::fs::read_dir(path).in_file(path)?;
    let mut files: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(Location::Gguf(file)),
        (Some(_), false) => {
            let help = "the folder holds several GGUF files; give the path of one of them";
            Err(ErrorKind::missing(CONFIG_FILE, help)).in_file(path)
        }
        (None, _) => {
            let help = format!(
                "a model folder needs it beside {SINGLE_FILE} (or {INDEX_FILE}) and tokenizer.json; or give a .gguf file"
            );
            Err(ErrorKind::missing(CONFIG_FILE, help)).in_file(path)
        }
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
