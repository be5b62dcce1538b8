use messages::{
    InstanceId,
    kv::{BlockIds, KvChange, KvEvents, KvSnapshot, SNAPSHOT_BLOCKS},
};
use scheduler::{KvEvent, Scheduler};

/// Numbers what the prefix cache goes through, so that followers see what they missed.
pub(super) struct CacheFeed {
    instance: InstanceId,
    epoch: u64,
    next: u64,
    events: Vec<KvEvent>,
}

impl CacheFeed {
    pub fn new(instance: InstanceId) -> Self {
        Self { instance, epoch: rand::random(), next: 0, events: Vec::new() }
    }

    /// The changes since the last call, if there are any. Where the scheduler lost some a number is left out.
    pub fn take(&mut self, scheduler: &mut Scheduler) -> Option<KvEvents> {
        let complete = scheduler.take_kv_events(&mut self.events);
        if complete && self.events.is_empty() {
            return None;
        }
        self.next += u64::from(!complete);
        let number = self.next;
        self.next += 1;
        let changes = joined(&self.events);
        self.events.clear();
        Some(KvEvents { instance: self.instance.clone(), epoch: self.epoch, number, changes })
    }

    /// The whole cache as of the changes taken.
    pub fn snapshot(&self, scheduler: &Scheduler) -> KvSnapshot {
        let blocks = scheduler.kv_snapshot().into_iter().filter_map(|event| match event {
            KvEvent::Stored { block, .. } => Some(block),
            KvEvent::Removed { .. } | KvEvent::Cleared => None,
        });
        KvSnapshot {
            instance: self.instance.clone(),
            epoch: self.epoch,
            next: self.next,
            blocks: blocks.take(SNAPSHOT_BLOCKS).collect(),
        }
    }
}

/// Neighbours of one kind become one change.
fn joined(events: &[KvEvent]) -> Vec<KvChange> {
    let alike = |a: &KvEvent, b: &KvEvent| std::mem::discriminant(a) == std::mem::discriminant(b);
    let changes = events.chunk_by(alike).map(|chunk| {
        let blocks: BlockIds = chunk
            .iter()
            .filter_map(|event| match event {
                KvEvent::Stored { block, .. } | KvEvent::Removed { block } => Some(*block),
                KvEvent::Cleared => None,
            })
            .collect();
        match chunk[0] {
            KvEvent::Stored { .. } => KvChange::Stored(blocks),
            KvEvent::Removed { .. } => KvChange::Removed(blocks),
            KvEvent::Cleared => KvChange::Cleared,
        }
    });
    changes.collect()
}
