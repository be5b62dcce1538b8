use crate::error::ErrorKind;

/// Reads little-endian values off the front of a file. `field` in each call names what is read, for the error.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.file.len() - self.at
    }

    pub(super) fn bytes(&mut self, length: usize, field: &str) -> Result<&'a [u8], ErrorKind> {
        if length > self.remaining() {
            let reason =
                format!("needs {length} bytes at {}, the file has {} more", self.at, self.remaining());
            return Err(ErrorKind::malformed(field, reason));
        }
        let bytes = &self.file[self.at..][..length];
        self.at += length;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], ErrorKind> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, field)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, ErrorKind> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, ErrorKind> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each, checked against what is left of the file, so that
    /// room for them may be allocated.
    pub(super) fn count(&mut self, least: usize, most: usize, field: &str) -> Result<usize, ErrorKind> {
        let count = self.u64(field)?;
        let fit = (self.remaining() / least).min(most);
        match usize::try_from(count) {
            Ok(count) if count <= fit => Ok(count),
            _ => Err(ErrorKind::malformed(field, format!("{count} entries, at most {fit} can follow"))),
        }
    }

    pub(super) fn string(&mut self, most: usize, field: &str) -> Result<&'a str, ErrorKind> {
        let length = self.count(1, most, field)?;
        let bytes = self.bytes(length, field)?;
        std::str::from_utf8(bytes).map_err(|error| ErrorKind::malformed(field, error))
    }
}
