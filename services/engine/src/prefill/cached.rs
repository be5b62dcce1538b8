use std::collections::HashSet;

use messages::{
    block::BlockHash,
    kv::{KvChange, KvEvents},
};

/// What the prefix cache of this engine holds, as far as it has told: so it is known what a prompt will find there before
/// the device hears of it.
#[derive(Debug, Default)]
pub(super) struct Cached {
    blocks: HashSet<u64>,
    /// Number of the changes that come next.
    next: u64,
}

impl Cached {
    pub fn hear(&mut self, events: &KvEvents) {
        if events.number != self.next {
            // Some were lost: what is not known to be there is taken to be missing.
            self.blocks.clear();
        }
        self.next = events.number + 1;
        for change in &events.changes {
            match change {
                KvChange::Stored(ids) => self.blocks.extend(ids.iter()),
                KvChange::Removed(ids) => {
                    for id in ids.iter() {
                        self.blocks.remove(&id);
                    }
                }
                KvChange::Cleared => self.blocks.clear(),
            }
        }
    }

    /// How many of the first blocks of a prompt it holds.
    pub fn leading(&self, blocks: impl Iterator<Item = BlockHash>) -> u32 {
        let held = blocks.take_while(|block| self.blocks.contains(&block.short()));
        u32::try_from(held.count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use messages::block::{CacheScope, ClusterKey};

    use super::*;

    fn events(number: u64, changes: Vec<KvChange>) -> KvEvents {
        KvEvents { instance: "prefill-1".parse().unwrap(), epoch: 1, number, changes }
    }

    #[test]
    fn it_knows_the_leading_blocks_of_a_prompt_until_it_hears_otherwise() {
        let key = ClusterKey::derive("test");
        let root = key.root(&CacheScope { revision: "r", adapter: None, salt: None });
        let chain: Vec<BlockHash> = (0..4)
            .scan(root, |parent, token| {
                *parent = key.child(*parent, &[token; 16], &[]);
                Some(*parent)
            })
            .collect();
        let mut cached = Cached::default();
        let leading = |cached: &Cached| cached.leading(chain.iter().copied());
        assert_eq!(leading(&cached), 0);
        cached.hear(&events(0, vec![KvChange::Stored(chain[..3].iter().copied().collect())]));
        assert_eq!(leading(&cached), 3);
        cached.hear(&events(1, vec![KvChange::Removed(chain[2..3].iter().copied().collect())]));
        assert_eq!(leading(&cached), 2);
        cached.hear(&events(3, vec![KvChange::Stored(chain[..1].iter().copied().collect())]));
        assert_eq!(leading(&cached), 1, "changes were lost, and blocks may be gone");
        cached.hear(&events(4, vec![KvChange::Cleared]));
        assert_eq!(leading(&cached), 0);
    }
}
