use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use messages::{InstanceId, lease::Lease};

use super::drift::Drift;
use crate::{chain::page_size_of, follow::Follower, load::LoadView};

/// One engine.
#[derive(Debug)]
pub struct Member {
    pub lease: Arc<Lease>,
    pub(super) load: LoadView,
    pub follower: Follower,
    /// A snapshot of its cache is on its way.
    pub asked: bool,
    pub drift: Drift,
    /// Tokens of a block.
    pub(super) page_size: u32,
    hash: u64,
}

impl Member {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        let hash = hash_of(lease.instance.as_str());
        let (load, follower, drift) = (LoadView::new(lease.role), Follower::default(), Drift::default());
        let page_size = page_size_of(&lease);
        Self { lease, load, follower, asked: false, drift, page_size, hash }
    }

    pub fn instance(&self) -> &InstanceId {
        &self.lease.instance
    }

    pub fn load(&self) -> &LoadView {
        &self.load
    }

    /// Its lease, if a snapshot of its cache is needed and not yet on its way.
    pub(super) fn ask(&mut self) -> Option<Arc<Lease>> {
        let due = self.follower.is_lost() && !self.asked;
        self.asked |= due;
        due.then(|| self.lease.clone())
    }

    /// Requests that it may have before more are held: `above` times those that it runs at once, and no more than it
    /// lets wait. Before its first report the lease tells; without either there is no limit.
    pub fn room(&self, above: f64) -> u32 {
        let reported = self.load.reported().map(|load| (load.max_running, load.max_queued));
        reported.or(self.lease.max_running.zip(self.lease.max_queued)).map_or(
            u32::MAX,
            |(running, queued)| {
                let limit = (f64::from(running) * above).ceil() as u32;
                limit.min(running.saturating_add(queued)).saturating_sub(self.load.burden().requests)
            },
        )
    }

    /// Tokens of the longest sequence that its context and its KV pool hold; the KV of the last one is never computed.
    pub fn longest_sequence(&self) -> u64 {
        let context = self.lease.card.as_ref().map_or(u64::MAX, |card| card.context_length.into());
        self.lease.kv_tokens.map_or(u64::MAX, |tokens| tokens.saturating_add(1)).min(context)
    }

    /// Whether it never lets prompts be computed elsewhere.
    pub fn computes_all(&self) -> bool {
        self.lease.computes_all
    }

    /// Whether KV pages that `other` has computed are of use to it.
    pub fn takes_pages_of(&self, other: &Self) -> bool {
        self.lease.takes_pages_of(&other.lease)
    }

    /// Whether it asks nothing of this prefill instance for a while.
    pub fn shuns(&self, prefill: &InstanceId) -> bool {
        self.load.reported().is_some_and(|load| load.shunned.contains(prefill))
    }

    /// Its rank among engines for a session: any two routers say the same (highest random weight).
    pub(super) fn rank(&self, session: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.hash, session).hash(&mut hasher);
        hasher.finish()
    }
}

/// Equal in all processes of one version.
pub fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
