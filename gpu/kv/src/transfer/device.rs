//! Slots in the memory of a device. No device is known here: whoever has one implements [`DeviceMemory`].

use std::{io, sync::Arc};

/// Bytes of a [`DeviceHandle`].
const HANDLE: usize = 64;

/// Where something lies in device memory, as this process' device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    pub fn at(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// What another process of the same host needs to map a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceHandle(pub [u8; HANDLE]);

impl DeviceHandle {
    pub const BYTES: usize = HANDLE;
}

/// Device memory that the processes of a host share.
pub trait DeviceMemory: Send + Sync {
    /// Sets `bytes` of it aside for others to store to.
    ///
    /// # Errors
    /// If there is not so much left, or it cannot be shared.
    fn allocate(&self, bytes: u64) -> io::Result<Arc<dyn DeviceSlab>>;

    /// Maps a slab that another process has set aside.
    ///
    /// # Errors
    /// If this process' device cannot reach it.
    fn open(&self, handle: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>>;

    /// Page-locked host memory of `bytes`, for what is on its way from the device to other hosts. Getting it takes longer than
    /// filling it.
    ///
    /// # Errors
    /// If it cannot be had.
    fn room(&self, bytes: usize) -> io::Result<Box<dyn HostRoom>>;
}

/// Host memory that the device stores to.
pub trait HostRoom: Send {
    /// Where the device finds it.
    fn address(&self) -> DeviceAddress;

    /// Meaningful while the device does not store to it.
    fn bytes(&self) -> &[u8];
}

/// A piece of device memory, this process' own or mapped. Calls block; they come on any thread.
pub trait DeviceSlab: Send + Sync {
    fn handle(&self) -> DeviceHandle;

    fn address(&self) -> DeviceAddress;

    /// How long it is.
    fn bytes(&self) -> u64;

    /// Copies `bytes` from the host to offset `at`.
    ///
    /// # Errors
    /// If the device fails.
    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// The [`device_checksum`] of each span.
    ///
    /// # Errors
    /// If the device fails.
    fn checksums(&self, spans: &[Span]) -> io::Result<Vec<u64>>;
}

/// Bytes of a slab that have a checksum of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub at: u64,
    /// A multiple of 16.
    pub bytes: u64,
    pub seed: u64,
}

/// The checksum of bytes in device memory: the sum of their 8-byte words (little-endian), each mixed by SplitMix64 with
/// its place and the seed. A sum, so that thousands of threads can add to it in any order.
///
/// # Panics
/// If they are no whole words.
pub fn device_checksum(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty(), "{} bytes are no whole words", bytes.len());
    words.iter().zip(1u64..).fold(0, |sum: u64, (word, place)| {
        let mut x = u64::from_le_bytes(*word)
            .wrapping_add(seed)
            .wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        sum.wrapping_add(x ^ (x >> 31))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_every_bit_its_place_and_the_seed() {
        let bytes: Vec<u8> = (0..64).collect();
        let sum = device_checksum(7, &bytes);
        assert_ne!(sum, device_checksum(8, &bytes));
        let mut swapped = bytes.clone();
        swapped.rotate_left(8);
        assert_ne!(sum, device_checksum(7, &swapped));
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum, device_checksum(7, &flipped), "bit {bit}");
        }
    }
}
