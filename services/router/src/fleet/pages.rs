use std::sync::Arc;

use messages::lease::Lease;

use crate::{
    chain::{Chain, PAGE_SIZE, blocks_of, page_size_of},
    index::{Index, Matches, Worker},
};

/// The page sizes of a fleet's members, mostly one, and what members of each hold of the prompt last looked up: engines
/// of another page size name other blocks.
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
    matches: Matches,
}

impl Pages {
    /// Takes in who is there; says where in `self` each has its page size.
    pub fn sort(&mut self, members: &[Arc<Lease>]) -> Vec<usize> {
        self.sizes.clear();
        for lease in members {
            let tokens = page_size_of(lease);
            if let Err(place) = self.place(tokens) {
                self.sizes.insert(place, Size { tokens, lease: lease.clone(), matches: Matches::default() });
            }
        }
        members.iter().filter_map(|lease| self.place(page_size_of(lease)).ok()).collect()
    }

    fn place(&self, tokens: u32) -> Result<usize, usize> {
        self.sizes.binary_search_by_key(&tokens, |size| size.tokens)
    }

    pub fn look_up(&mut self, chains: &[Chain], index: &Index) {
        for size in &mut self.sizes {
            index.matches(blocks_of(chains, size.tokens), &mut size.matches);
        }
    }

    /// Leading blocks of its own size that a member holds.
    #[inline]
    pub fn depth(&self, page: usize, worker: Worker) -> u32 {
        self.sizes[page].matches.depth(worker)
    }

    pub fn size(&self, page: usize) -> u32 {
        self.sizes[page].tokens
    }

    /// Tokens of the smallest block.
    pub fn unit(&self) -> u32 {
        self.sizes.first().map_or(PAGE_SIZE, |size| size.tokens)
    }

    /// So many blocks in smallest ones.
    #[inline]
    pub fn in_units(&self, page: usize, blocks: u32) -> u32 {
        if page == 0 {
            return blocks;
        }
        let tokens = u64::from(blocks) * u64::from(self.size(page));
        u32::try_from(tokens / u64::from(self.unit())).unwrap_or(u32::MAX)
    }

    pub fn leases(&self) -> Vec<Arc<Lease>> {
        self.sizes.iter().map(|size| size.lease.clone()).collect()
    }
}
