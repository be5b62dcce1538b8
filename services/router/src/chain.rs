use messages::{
    block::{CacheScope, ClusterKey},
    lease::Lease,
    submit::Submit,
};

/// Tokens of a block where an engine does not say.
const PAGE_SIZE: u32 = 16;

/// The routing ids of a prompt's whole blocks, as engines of one revision and page size name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub page_size: u32,
    pub blocks: Vec<u64>,
}

impl Chain {
    pub fn of(key: &ClusterKey, lease: &Lease, submit: &Submit) -> Self {
        let page_size = lease.page_size.filter(|tokens| *tokens > 0).unwrap_or(PAGE_SIZE);
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
