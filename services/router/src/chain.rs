use messages::{
    block::{CacheScope, ClusterKey},
    lease::Lease,
    submit::Submit,
};

/// Tokens of a block where an engine does not say.
pub const PAGE_SIZE: u32 = 16;

/// The routing ids of a prompt's whole blocks, as engines of one revision and page size name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub page_size: u32,
    pub blocks: Vec<u64>,
}

/// Tokens of a block of this engine.
pub fn page_size_of(lease: &Lease) -> u32 {
    lease.page_size.filter(|tokens| *tokens > 0).unwrap_or(PAGE_SIZE)
}

/// The blocks of a prompt as engines of this page size name them; none if that is not known.
pub fn blocks_of(chains: &[Chain], page_size: u32) -> &[u64] {
    let chain = chains.iter().find(|chain| chain.page_size == page_size);
    chain.map_or(&[], |chain| &chain.blocks)
}

impl Chain {
    pub fn of(key: &ClusterKey, lease: &Lease, submit: &Submit) -> Self {
        let page_size = page_size_of(lease);
        let revision = lease.card.as_ref().map_or("", |card| card.revision.as_str());
        let scope = CacheScope { revision, adapter: None, salt: submit.cache_salt.as_deref() };
        let mut parent = key.root(&scope);
        let tokens = submit.prompt.to_vec();
        let blocks = tokens.chunks_exact(page_size as usize).map(|block| {
            parent = key.child(parent, block, &[]);
            parent.short()
        });
        Self { page_size, blocks: blocks.collect() }
    }
}
