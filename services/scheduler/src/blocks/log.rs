use crate::KvEvent;

/// Events kept until they are taken; beyond, followers need a snapshot anyway.
const MAX_EVENTS: usize = 65_536;

/// Changes of the prefix cache that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct KvLog {
    enabled: bool,
    events: Vec<KvEvent>,
    lost: bool,
}

impl KvLog {
    pub fn new(enabled: bool) -> Self {
        Self { enabled, ..Self::default() }
    }

    pub fn push(&mut self, event: KvEvent) {
        if !self.enabled || self.lost {
            return;
        }
        if self.events.len() == MAX_EVENTS {
            self.events.clear();
            self.lost = true;
        } else {
            self.events.push(event);
        }
    }

    /// Appends what there is; false if events were lost since the last call.
    pub fn take(&mut self, out: &mut Vec<KvEvent>) -> bool {
        out.append(&mut self.events);
        !std::mem::take(&mut self.lost)
    }
}
