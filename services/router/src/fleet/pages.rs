use std::sync::Arc;

use messages::lease::Lease;

use crate::{
    chain::{Chain, PAGE_SIZE, blocks_of, page_size_of},
    index::{Index, Matches, Worker},
    load::Burden,
};

/// The page sizes of a fleet's members, mostly one. Engines of another page size name other blocks; what they hold and
/// carry is counted in blocks of the smallest.
#[derive(Debug, Default)]
pub struct Pages {
    /// Smallest first.
    sizes: Vec<Size>,
}

#[derive(Debug)]
struct Size {
    tokens: u32,
    /// One of the members.
    lease: Arc<Lease>,
    /// What members of this size, if it is not the smallest, hold of the prompt last looked up.
    matches: Matches,
}

impl Pages {
    /// Takes in who is there.
    pub fn sort(&mut self, members: &[Arc<Lease>]) {
        self.sizes.clear();
        for lease in members {
            let tokens = page_size_of(lease);
            if let Err(place) = self.sizes.binary_search_by_key(&tokens, |size| size.tokens) {
                self.sizes.insert(place, Size { tokens, lease: lease.clone(), matches: Matches::default() });
            }
        }
    }

    /// Tokens of the smallest block.
    pub fn unit(&self) -> u32 {
        self.sizes.first().map_or(PAGE_SIZE, |size| size.tokens)
    }

    /// Looks a prompt up among larger blocks; true if any member has such.
    pub fn look_up_larger(&mut self, chains: &[Chain], index: &Index) -> bool {
        for size in self.sizes.iter_mut().skip(1) {
            index.matches(blocks_of(chains, size.tokens), &mut size.matches);
        }
        self.sizes.len() > 1
    }

    /// Tokens of the prompt that a worker with blocks of `page_size`, which are larger, holds.
    pub fn tokens(&self, page_size: u32, worker: Worker) -> u32 {
        let size = self.sizes.iter().find(|size| size.tokens == page_size);
        size.map_or(0, |size| size.matches.depth(worker) * page_size)
    }

    /// A burden of blocks of `page_size` in smallest ones.
    pub fn in_units(&self, page_size: u32, burden: Burden) -> Burden {
        let tokens = u64::from(burden.blocks) * u64::from(page_size);
        let blocks = u32::try_from(tokens / u64::from(self.unit())).unwrap_or(u32::MAX);
        Burden { blocks, ..burden }
    }

    pub fn leases(&self) -> Vec<Arc<Lease>> {
        self.sizes.iter().map(|size| size.lease.clone()).collect()
    }
}
