use std::sync::atomic::{AtomicUsize, Ordering};

use actors::suspects::Suspects;
use messages::InstanceId;

use crate::{loads::Loads, settings::Policy};

/// What speaks against an engine before its load does: preferences, never vetoes.
pub struct Doubts<'a> {
    pub suspects: &'a Suspects,
    pub avoid: &'a [InstanceId],
    pub tried: &'a [InstanceId],
}

impl Doubts<'_> {
    fn against(&self, instance: &InstanceId) -> bool {
        self.avoid.contains(instance) || self.suspects.is_suspect(instance)
    }
}

/// Orders engines by policy.
#[derive(Debug)]
pub struct Chooser {
    policy: Policy,
    turn: AtomicUsize,
}

impl Chooser {
    pub fn new(policy: Policy) -> Self {
        Self { policy, turn: AtomicUsize::new(0) }
    }

    /// The best of `live` that was not tried yet.
    pub fn choose(&self, live: &[InstanceId], loads: &Loads, doubts: &Doubts<'_>) -> Option<InstanceId> {
        let fresh: Vec<&InstanceId> =
            live.iter().filter(|instance| !doubts.tried.contains(instance)).collect();
        if fresh.is_empty() {
            return None;
        }
        let first = match self.policy {
            Policy::Random => rand::random_range(0..fresh.len()),
            // Equal loads take turns.
            Policy::RoundRobin | Policy::LeastLoaded => {
                self.turn.fetch_add(1, Ordering::Relaxed) % fresh.len()
            }
        };
        let rotated = fresh.iter().cycle().skip(first).take(fresh.len());
        let best = match self.policy {
            Policy::LeastLoaded => {
                rotated.min_by_key(|instance| (doubts.against(instance), loads.burden(instance)))
            }
            Policy::RoundRobin | Policy::Random => rotated.min_by_key(|instance| doubts.against(instance)),
        };
        best.map(|instance| (*instance).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use messages::load::Load;

    use super::*;

    fn id(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    fn load(name: &str, running: u32) -> Load {
        Load {
            instance: id(name),
            number: 1,
            running,
            queued: 0,
            max_running: 8,
            max_queued: 8,
            blocks_used: 0,
            blocks_cached: 0,
            blocks_total: 1,
            pending_prefill_tokens: 0,
            step_us: 0,
            prefill_token_ns: 0,
            seen: Vec::new(),
            kv: None,
            alone: false,
            started: Vec::new(),
        }
    }

    #[test]
    fn the_least_loaded_is_chosen_and_own_dispatches_count() {
        let (chooser, suspects) = (Chooser::new(Policy::LeastLoaded), Suspects::default());
        let doubts = Doubts { suspects: &suspects, avoid: &[], tried: &[] };
        let mut loads = Loads::default();
        loads.heard(load("a", 3), Instant::now());
        loads.heard(load("b", 1), Instant::now());
        let live = [id("a"), id("b")];
        let mut chosen = Vec::new();
        for _ in 0..4 {
            let next = chooser.choose(&live, &loads, &doubts).unwrap();
            loads.dispatched(&next);
            chosen.push(next);
        }
        assert_eq!(
            chosen.iter().filter(|c| **c == id("b")).count(),
            3,
            "b takes 2 to draw level, then turns"
        );
    }

    #[test]
    fn doubts_are_preferences_and_tried_ones_are_left_out() {
        let (chooser, suspects) = (Chooser::new(Policy::LeastLoaded), Suspects::default());
        suspects.mark(&id("a"));
        let loads = Loads::default();
        let live = [id("a"), id("b")];
        let choose = |avoid: &[InstanceId], tried: &[InstanceId]| {
            chooser.choose(&live, &loads, &Doubts { suspects: &suspects, avoid, tried })
        };
        assert_eq!(choose(&[], &[]), Some(id("b")));
        assert_eq!(choose(&[], &[id("b")]), Some(id("a")), "a suspect serves when nobody else can");
        assert!(choose(&[id("b")], &[]).is_some());
        assert_eq!(choose(&[], &[id("a"), id("b")]), None);
    }
}
