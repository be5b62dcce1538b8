//! What engines say of their prefix caches, so that routers send a request to where its prefix lies.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{block::BlockHash, id::InstanceId};

/// Changes of one instance's prefix cache, in order. Broadcast; a gap in the numbers calls for a [`KvSnapshot`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvEvents {
    pub instance: InstanceId,
    /// Drawn when the instance starts: numbers of different epochs do not compare.
    pub epoch: u64,
    /// Number of this message, from 0 on in each epoch.
    pub number: u64,
    pub changes: Vec<KvChange>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvChange {
    /// These blocks may be matched from now on, parents before children.
    Stored(BlockIds),
    /// These may not, children before parents.
    Removed(BlockIds),
    /// No block is left.
    Cleared,
}

/// Answer to [`crate::control::Control::KvSnapshot`]: a whole prefix cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvSnapshot {
    pub instance: InstanceId,
    pub epoch: u64,
    /// Number of the next [`KvEvents`]; all before it are included here.
    pub next: u64,
    /// Parents before children, at most [`SNAPSHOT_BLOCKS`] and what the bus carries: of a larger cache the deepest are
    /// left out.
    pub blocks: BlockIds,
}

/// Blocks of a snapshot: 4 MB of ids.
pub const SNAPSHOT_BLOCKS: usize = 500_000;
/// Bytes of a snapshot beside its blocks, at most.
const SNAPSHOT_HEAD: usize = 256;

impl KvSnapshot {
    /// Leaves out the deepest blocks so that the message takes `bytes` at most.
    #[must_use]
    pub fn cut_to(mut self, bytes: usize) -> Self {
        self.blocks.0.truncate(bytes.saturating_sub(SNAPSHOT_HEAD) / 8 * 8);
        self
    }
}

/// The routing ids ([`BlockHash::short`]) of blocks as they travel: little-endian u64 bytes.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIds(Bytes);

impl BlockIds {
    pub fn len(&self) -> usize {
        self.0.len() / 8
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A last incomplete id, which no sender writes, is left out.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let (ids, _) = self.0.as_chunks::<8>();
        ids.iter().map(|id| u64::from_le_bytes(*id))
    }
}

impl FromIterator<BlockHash> for BlockIds {
    fn from_iter<I: IntoIterator<Item = BlockHash>>(blocks: I) -> Self {
        blocks.into_iter().map(BlockHash::short).collect()
    }
}

impl FromIterator<u64> for BlockIds {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> Self {
        Self(ids.into_iter().flat_map(u64::to_le_bytes).collect())
    }
}

impl std::fmt::Debug for BlockIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} blocks", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_snapshot_is_cut_to_what_the_bus_carries_and_no_further() {
        let snapshot = |blocks: u64| KvSnapshot {
            instance: "a".repeat(64).parse().unwrap(),
            epoch: u64::MAX,
            next: u64::MAX,
            blocks: (0..blocks).collect(),
        };
        let (large, limit) = (snapshot(200_000), 1 << 20);
        assert!(codec::encode(&large).len() > limit);
        let cut = large.cut_to(limit);
        assert!((limit - 1000..=limit).contains(&codec::encode(&cut).len()));
        assert!(cut.blocks.iter().eq(0..cut.blocks.len() as u64), "the first ones stay");
        assert_eq!(snapshot(100).cut_to(limit), snapshot(100));
    }
}
