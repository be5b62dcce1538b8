use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use messages::{InstanceId, lease::Lease};

use super::drift::Drift;
use crate::{follow::Follower, index::Worker, load::LoadView};

/// One engine.
#[derive(Debug)]
pub struct Member {
    pub lease: Arc<Lease>,
    pub load: LoadView,
    pub follower: Follower,
    /// A snapshot of its cache is on its way.
    pub asked: bool,
    pub drift: Drift,
    pub(super) worker: Worker,
    hash: u64,
}

impl Member {
    pub(super) fn new(lease: Arc<Lease>, worker: Worker) -> Self {
        let hash = hash_of(lease.instance.as_str());
        let (load, follower, drift) = (LoadView::new(lease.role), Follower::default(), Drift::default());
        Self { lease, load, follower, asked: false, drift, worker, hash }
    }

    pub fn instance(&self) -> &InstanceId {
        &self.lease.instance
    }

    /// Requests that it may have before more are held; without a report there is no limit.
    pub fn room(&self, above: f64) -> u32 {
        let burden = self.load.burden();
        let limit = |running: u32| (f64::from(running) * above).ceil() as u32;
        self.load.reported().map_or(u32::MAX, |load| limit(load.max_running).saturating_sub(burden.requests))
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
