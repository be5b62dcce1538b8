//! The bytes on a connection. All numbers little-endian, all messages of fixed size.
//!
//! Receiver: [`Challenge`]. Writer: [`Hello`]. Receiver: [`Welcome`]. Then the writer sends frames, a [`Frame`] header
//! each, followed by its layers where they travel on the connection; and the receiver sends [`Notice`]s.

use super::{Epoch, PageIndex, TransferKey};

/// Begins every message but notices; the last byte is the version of the protocol.
const MAGIC: [u8; 4] = *b"skv\x01";

pub(super) type Nonce = [u8; 16];

/// Takes a fixed number of bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn magic(bytes: &mut &[u8]) -> Option<()> {
    (take::<4>(bytes)? == MAGIC).then_some(())
}

fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for part in parts {
        let (head, tail) = rest.split_at_mut(part.len());
        head.copy_from_slice(part);
        rest = tail;
    }
    bytes
}

/// What the writer has to answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Challenge(pub Nonce);

impl Challenge {
    pub const BYTES: usize = 20;

    pub fn encode(&self) -> [u8; Self::BYTES] {
        concat(&[&MAGIC, &self.0])
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut bytes = bytes.as_slice();
        magic(&mut bytes)?;
        take(&mut bytes).map(Self)
    }
}

/// A writer that wants to push under `epoch`, and what the receiver has to answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub epoch: Epoch,
    pub nonce: Nonce,
}

impl Hello {
    pub const BYTES: usize = 60;

    pub fn encode(&self, key: &TransferKey, challenge: Challenge) -> [u8; Self::BYTES] {
        let epoch = self.epoch.0.to_le_bytes();
        let proof = key.proof(b"hello", &[&challenge.0, &epoch, &self.nonce]);
        concat(&[&MAGIC, &epoch, &self.nonce, proof.as_bytes()])
    }

    /// None if the writer does not know `key`, or answers another challenge.
    pub fn decode(bytes: &[u8; Self::BYTES], key: &TransferKey, challenge: Challenge) -> Option<Self> {
        let mut bytes = bytes.as_slice();
        magic(&mut bytes)?;
        let (epoch, nonce) = (take(&mut bytes)?, take(&mut bytes)?);
        let proof = key.proof(b"hello", &[&challenge.0, &epoch, &nonce]);
        (proof == take::<32>(&mut bytes)?).then_some(Self { epoch: Epoch(u64::from_le_bytes(epoch)), nonce })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Welcome {
    Open = 0,
    /// The grant is over, was never given, or has connections enough.
    Unknown = 1,
}

impl Welcome {
    pub const BYTES: usize = 37;

    pub fn encode(self, key: &TransferKey, hello: Hello) -> [u8; Self::BYTES] {
        let verdict = [self as u8];
        concat(&[&MAGIC, &verdict, key.proof(b"welcome", &[&verdict, &hello.nonce]).as_bytes()])
    }

    /// None if the receiver does not know `key`, or answers another hello.
    pub fn decode(bytes: &[u8; Self::BYTES], key: &TransferKey, hello: Hello) -> Option<Self> {
        let mut bytes = bytes.as_slice();
        magic(&mut bytes)?;
        let verdict = take::<1>(&mut bytes)?;
        if key.proof(b"welcome", &[&verdict, &hello.nonce]) != take::<32>(&mut bytes)? {
            return None;
        }
        match verdict {
            [0] => Some(Self::Open),
            [1] => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// Header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// `length` bytes: layers of page `index` from `layer` on.
    Layers { epoch: Epoch, index: PageIndex, layer: u32, length: u32, checksum: u64 },
    /// No store and no frame will follow under this epoch. Answered by [`Notice::Closed`].
    Close { epoch: Epoch },
}

impl Frame {
    pub const BYTES: usize = 36;

    pub fn encode(&self) -> [u8; Self::BYTES] {
        let (kind, epoch, [index, layer, length], checksum) = match *self {
            Self::Layers { epoch, index, layer, length, checksum } => {
                (1u32, epoch, [index.0, layer, length], checksum)
            }
            Self::Close { epoch } => (2, epoch, [0; 3], 0),
        };
        let [index, layer, length] = [index, layer, length].map(u32::to_le_bytes);
        let (epoch, checksum) = (epoch.0.to_le_bytes(), checksum.to_le_bytes());
        concat(&[&MAGIC, &kind.to_le_bytes(), &epoch, &index, &layer, &length, &checksum])
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut bytes = bytes.as_slice();
        magic(&mut bytes)?;
        let mut word = || take(&mut bytes).map(u32::from_le_bytes);
        let (kind, low, high) = (word()?, word()?, word()?);
        let (index, layer, length) = (PageIndex(word()?), word()?, word()?);
        let epoch = Epoch(u64::from(high) << 32 | u64::from(low));
        let checksum = u64::from_le_bytes(take(&mut bytes)?);
        match kind {
            1 => Some(Self::Layers { epoch, index, layer, length, checksum }),
            2 => Some(Self::Close { epoch }),
            _ => None,
        }
    }
}

/// From receiver to writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// The page was taken: its slot is for the page one window later.
    Taken(PageIndex),
    /// Every frame before [`Frame::Close`] has arrived.
    Closed,
    Revoked,
    Corrupt,
    /// The writer broke the protocol.
    Violation,
}

impl Notice {
    pub const BYTES: usize = 8;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let (kind, index) = match self {
            Self::Taken(index) => (1u32, index.0),
            Self::Closed => (2, 0),
            Self::Revoked => (3, 0),
            Self::Corrupt => (4, 0),
            Self::Violation => (5, 0),
        };
        concat(&[&kind.to_le_bytes(), &index.to_le_bytes()])
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut bytes = bytes.as_slice();
        let (kind, index) = (take(&mut bytes)?, take(&mut bytes)?);
        match u32::from_le_bytes(kind) {
            1 => Some(Self::Taken(PageIndex(u32::from_le_bytes(index)))),
            2 => Some(Self::Closed),
            3 => Some(Self::Revoked),
            4 => Some(Self::Corrupt),
            5 => Some(Self::Violation),
            _ => None,
        }
    }
}

/// Tells the places of frames apart, also across grants.
pub(super) fn seed(epoch: Epoch, index: PageIndex, layer: u32) -> u64 {
    epoch.0 ^ (u64::from(index.0) << 32 | u64::from(layer))
}
