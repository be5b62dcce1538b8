//! Block identity: the one function that names a KV block anywhere in a cluster.
//!
//! A block is `page_size` tokens of KV. Its hash chains its parent's, so equal hashes mean equal prefixes. The chain
//! starts at a root that binds cluster key, model revision, adapter and cache salt: nobody outside can aim at
//! another tenant's blocks. BLAKE3 in keyed mode, cut to 128 bits.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Tokens up to which a block is hashed in one piece.
const SMALL: usize = 64;
/// Token ids below this are hashed as three bytes each: 16 of them and their parent fill one block of BLAKE3, where four
/// bytes each would take two.
const NARROW: u32 = 1 << 24;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockHash(u128);

impl BlockHash {
    /// The 64 bits that an index may keep; caches, tiers and transfers compare all 128.
    pub fn short(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Secret shared by a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey {
    key: [u8; 32],
    /// Of small blocks of narrow tokens, so that no other input means the same bytes.
    narrow: [u8; 32],
}

impl ClusterKey {
    /// Derives the key from any text.
    pub fn derive(secret: &str) -> Self {
        let derive = |context| blake3::derive_key(context, secret.as_bytes());
        Self {
            key: derive("stator 2026 cluster key of KV block identity"),
            narrow: derive("stator 2026 cluster key of KV block identity, three bytes a token"),
        }
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey")
    }
}

/// What separates prefix caches from each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CacheScope<'a> {
    pub revision: &'a str,
    pub adapter: Option<&'a str>,
    pub salt: Option<&'a str>,
}

impl ClusterKey {
    /// The parent of every first block in `scope`.
    pub fn root(&self, scope: &CacheScope<'_>) -> BlockHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [Some(scope.revision), scope.adapter, scope.salt] {
            let text = part.unwrap_or_default();
            hasher.update(&[u8::from(part.is_some())]);
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        cut(&hasher.finalize())
    }

    /// The block after `parent` that holds `tokens` and covers non-text inputs with these content hashes.
    pub fn child(&self, parent: BlockHash, tokens: &[u32], inputs: &[[u8; 16]]) -> BlockHash {
        if inputs.is_empty() && tokens.len() <= SMALL && tokens.iter().all(|id| *id < NARROW) {
            return self.narrow_child(parent, tokens);
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&parent.0.to_le_bytes());
        let mut bytes = [0; 4 * 64];
        for chunk in tokens.chunks(64) {
            for (slot, id) in bytes.chunks_exact_mut(4).zip(chunk) {
                slot.copy_from_slice(&id.to_le_bytes());
            }
            hasher.update(&bytes[..4 * chunk.len()]);
        }
        for input in inputs {
            hasher.update(input);
        }
        hasher.update(&(inputs.len() as u32).to_le_bytes());
        cut(&hasher.finalize())
    }

    /// Routers do this for every block of every prompt.
    fn narrow_child(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        let mut bytes = [0; 16 + 3 * SMALL];
        bytes[..16].copy_from_slice(&parent.0.to_le_bytes());
        for (slot, id) in bytes[16..].chunks_exact_mut(3).zip(tokens) {
            slot.copy_from_slice(&id.to_le_bytes()[..3]);
        }
        cut(&blake3::keyed_hash(&self.narrow, &bytes[..16 + 3 * tokens.len()]))
    }
}

fn cut(hash: &blake3::Hash) -> BlockHash {
    let mut head = [0; 16];
    head.copy_from_slice(&hash.as_bytes()[..16]);
    BlockHash(u128::from_le_bytes(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_identity_counts() {
        let key = ClusterKey::derive("a");
        let scope = CacheScope { revision: "r", adapter: None, salt: None };
        let root = key.root(&scope);
        let block = key.child(root, &[1, 2, 3], &[]);
        let others = [
            key.child(root, &[1, 2, 4], &[]),
            key.child(root, &[1, 2, 3], &[[7; 16]]),
            key.child(block, &[1, 2, 3], &[]),
            key.child(key.root(&CacheScope { salt: Some(""), ..scope.clone() }), &[1, 2, 3], &[]),
            key.child(key.root(&CacheScope { adapter: Some(""), ..scope.clone() }), &[1, 2, 3], &[]),
            key.child(key.root(&CacheScope { revision: "q", ..scope.clone() }), &[1, 2, 3], &[]),
            ClusterKey::derive("b").child(root, &[1, 2, 3], &[]),
        ];
        assert!(others.iter().all(|other| *other != block));
        assert_eq!(key.child(root, &[1, 2, 3], &[]), block);
    }

    #[test]
    fn a_block_is_the_keyed_hash_of_parent_tokens_and_inputs_whatever_its_size() {
        let key = ClusterKey::derive("test");
        let parent = key.root(&CacheScope::default());
        let last = NARROW - 1;
        for (tokens, inputs, most) in
            [(16, 0, NARROW), (16, 0, u32::MAX), (65, 0, last), (200, 0, last), (16, 2, last), (0, 1, last)]
        {
            let tokens: Vec<u32> = (0..tokens).map(|token| most - token * 70_001).collect();
            let inputs = vec![[7; 16]; inputs];
            let mut bytes = parent.0.to_le_bytes().to_vec();
            bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            bytes.extend(inputs.concat());
            bytes.extend((inputs.len() as u32).to_le_bytes());
            let expected = cut(&blake3::keyed_hash(&key.key, &bytes));
            assert_eq!(key.child(parent, &tokens, &inputs), expected, "{} tokens", tokens.len());
        }
        for tokens in [0, 16, 64] {
            let tokens: Vec<u32> = (0..tokens).map(|token| last - token * 70_001).collect();
            let mut bytes = parent.0.to_le_bytes().to_vec();
            bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()[..3].to_vec()));
            let expected = cut(&blake3::keyed_hash(&key.narrow, &bytes));
            assert_eq!(key.child(parent, &tokens, &[]), expected, "{} tokens", tokens.len());
        }
    }
}
