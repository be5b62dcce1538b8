use std::time::{Duration, Instant};

use dashmap::DashMap;
use messages::InstanceId;
use parking_lot::Mutex;

/// How long a suspect is passed over while others can serve.
pub const SUSPECT_FOR: Duration = Duration::from_secs(10);

/// Instances that lately failed to answer. A preference, never a veto: with nobody else left, a suspect serves.
#[derive(Debug, Default)]
pub struct Suspects {
    until: DashMap<InstanceId, Instant>,
    /// When the last of them is over: mostly nobody is suspect, and many are asked about.
    last: Mutex<Option<Instant>>,
}

impl Suspects {
    pub fn mark(&self, instance: &InstanceId) {
        let now = Instant::now();
        self.until.retain(|_, end| *end > now);
        self.until.insert(instance.clone(), now + SUSPECT_FOR);
        *self.last.lock() = Some(now + SUSPECT_FOR);
    }

    pub fn is_suspect(&self, instance: &InstanceId) -> bool {
        let Some(last) = *self.last.lock() else { return false };
        let now = Instant::now();
        last > now && self.until.get(instance).is_some_and(|end| *end > now)
    }
}
