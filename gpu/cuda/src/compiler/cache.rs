use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use crate::{CudaError, KernelFile};

/// A folder of cubins, each with its checksum behind it, named by its file and the hash of source, options, compiler version
/// and architecture.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    arch: String,
    version: (u32, u32),
}

impl Cache {
    pub fn open(folder: &Path, arch: &str, version: (u32, u32)) -> Result<Self, CudaError> {
        fs::create_dir_all(folder).map_err(CudaError::io(folder))?;
        Ok(Self { folder: folder.to_owned(), arch: arch.to_owned(), version })
    }

    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// What the machine code of a file depends on.
    fn key(&self, file: KernelFile) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [file.source().as_str(), &super::nvrtc::options(&self.arch).join("\0"), &self.arch] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&self.version.0.to_le_bytes());
        hasher.update(&self.version.1.to_le_bytes());
        hasher.finalize()
    }

    /// As in [`super::Cubins`].
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in KernelFile::ALL {
            hasher.update(self.key(file).as_bytes());
        }
        hasher.finalize().to_hex()[..8].to_owned()
    }

    pub fn path(&self, file: KernelFile) -> PathBuf {
        let hash = self.key(file).to_hex();
        self.folder.join(format!("{}-{}.cubin", file.name().trim_end_matches(".cu"), &hash[..24]))
    }

    /// `None`: it is not there, or damaged.
    pub fn read(&self, file: KernelFile) -> Result<Option<Vec<u8>>, CudaError> {
        let path = self.path(file);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(CudaError::io(&path))?,
        };
        match bytes.split_last_chunk::<{ blake3::OUT_LEN }>() {
            Some((image, checksum)) if blake3::hash(image) == *checksum => Ok(Some(image.to_vec())),
            _ => {
                tracing::warn!(path = %path.display(), "a compiled kernel file is damaged");
                Ok(None)
            }
        }
    }
}

/// Writes a file so that readers see all of it or nothing, also beside other processes that write it.
pub(super) fn store(path: &Path, image: &[u8]) -> Result<(), CudaError> {
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(image)?;
        file.write_all(blake3::hash(image).as_bytes())?;
        file.sync_all()
    });
    written.map_err(CudaError::io(&partial))?;
    fs::rename(&partial, path).map_err(CudaError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_architecture_and_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let names = |arch, version| {
            let cache = Cache::open(folder.path(), arch, version).unwrap();
            (cache.path(KernelFile::Gemm), cache.digest())
        };
        let base = names("sm_90a", (13, 0));
        assert_eq!(base, names("sm_90a", (13, 0)));
        for other in [names("sm_100a", (13, 0)), names("sm_90a", (13, 1))] {
            assert!(base.0 != other.0 && base.1 != other.1);
        }
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), "sm_90a", (13, 0)).unwrap();
        assert_eq!(cache.read(KernelFile::Qkv).unwrap(), None);
        store(&cache.path(KernelFile::Qkv), b"image").unwrap();
        assert_eq!(cache.read(KernelFile::Qkv).unwrap().unwrap(), b"image");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_damaged_counts_as_absent_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), "sm_90a", (13, 0)).unwrap();
        let path = cache.path(KernelFile::Qkv);
        store(&path, b"image").unwrap();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[2] ^= 1;
        for damaged in [&[][..], b"image", &whole[..whole.len() - 1], &flipped] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.read(KernelFile::Qkv).unwrap(), None);
        }
        store(&path, b"image").unwrap();
        assert_eq!(cache.read(KernelFile::Qkv).unwrap().unwrap(), b"image");
    }
}
