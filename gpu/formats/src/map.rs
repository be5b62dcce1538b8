use std::{fs::File, path::Path};

use memmap2::Mmap;

use crate::error::{Error, ErrorKind, InFile};

/// Maps a whole file into memory, read-only.
///
/// The file must not be cut short while it is mapped: the process would get SIGBUS on the lost pages. Replace
/// model files by renaming a new one into place.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, Error> {
    let file = File::open(path).in_file(path)?;
    let metadata = file.metadata().in_file(path)?;
    if !metadata.is_file() {
        return Err(ErrorKind::malformed("file type", "not a regular file")).in_file(path);
    }
    // SAFETY: the mapping is private and read-only, and is only ever seen as bytes, for which every bit pattern is
    // valid. That nobody truncates or rewrites the file meanwhile is the documented duty of whoever deploys it.
    unsafe { Mmap::map(&file) }.in_file(path)
}

/// Reads a small text or JSON file, refusing anything longer than `limit` bytes before allocating.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let length = std::fs::metadata(path).in_file(path)?.len();
    if length > limit {
        let reason = format!("{length} bytes, more than the {limit} such a file may have");
        return Err(ErrorKind::malformed("file size", reason)).in_file(path);
    }
    std::fs::read(path).in_file(path)
}
