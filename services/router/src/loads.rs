use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use messages::{InstanceId, load::Load};

/// A report older than this says nothing.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// What each engine last said of its load, and what was sent to it since.
#[derive(Debug, Default)]
pub struct Loads {
    by_instance: HashMap<InstanceId, Entry>,
}

#[derive(Debug)]
struct Entry {
    load: Load,
    heard: Instant,
    /// Dispatches that the next report will include.
    since: u32,
}

impl Loads {
    pub fn heard(&mut self, load: Load, now: Instant) {
        self.by_instance.retain(|_, entry| now.duration_since(entry.heard) < STALE_AFTER);
        let instance = load.instance.clone();
        self.by_instance.insert(instance, Entry { load, heard: now, since: 0 });
    }

    pub fn dispatched(&mut self, instance: &InstanceId) {
        if let Some(entry) = self.by_instance.get_mut(instance) {
            entry.since += 1;
        }
    }

    pub fn departed(&mut self, instance: &InstanceId) {
        self.by_instance.remove(instance);
    }

    /// Requests aboard, and prompt tokens to compute before a new one; an engine not heard of counts as empty.
    pub fn burden(&self, instance: &InstanceId) -> (u32, u32) {
        self.by_instance.get(instance).map_or((0, 0), |entry| {
            (entry.load.running + entry.load.queued + entry.since, entry.load.pending_prefill_tokens)
        })
    }
}
