use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use messages::{InstanceId, Role, load::Load};

/// A dispatch that no report includes by then never arrived.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(5);
/// The same for a prefill instance, which gets its tasks from an engine: one that is not confirmed by then the engine
/// has kept, because its own cache held enough.
const PREFILL_UNCONFIRMED_FOR: Duration = Duration::from_secs(1);

/// What one engine carries, as this router knows it: its last report, which is absolute, and the router's own
/// dispatches above the number that the report confirms. A lost report heals with the next one, and routers need not
/// tell each other anything: what others send is in the reports.
#[derive(Debug)]
pub struct LoadView {
    unconfirmed_for: Duration,
    reported: Option<Load>,
    own: VecDeque<Own>,
    /// The sum of both.
    burden: Burden,
}

#[derive(Debug)]
struct Own {
    number: u64,
    at: Instant,
    work: Work,
}

/// What a request adds to an engine's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Prompt tokens to compute.
    pub prefill_tokens: u32,
    /// Blocks that it will hold beyond cached ones.
    pub blocks: u32,
}

/// Everything that an engine has before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Burden {
    /// Running, queued, and on their way.
    pub requests: u32,
    pub prefill_tokens: u32,
    pub blocks: u32,
}

impl LoadView {
    pub fn new(role: Role) -> Self {
        let unconfirmed_for = if role == Role::Prefill { PREFILL_UNCONFIRMED_FOR } else { UNCONFIRMED_FOR };
        Self { unconfirmed_for, reported: None, own: VecDeque::new(), burden: Burden::default() }
    }

    /// Takes a report in; false if a newer one came before it. `me` is this router.
    pub fn heard(&mut self, load: Load, me: &InstanceId, now: Instant) -> bool {
        if self.reported.as_ref().is_some_and(|known| known.number >= load.number) {
            return false;
        }
        let confirmed = load.seen.iter().find(|(router, _)| router == me).map_or(0, |(_, number)| *number);
        self.own.retain(|own| own.number > confirmed && now.duration_since(own.at) < self.unconfirmed_for);
        self.reported = Some(load);
        self.add_up();
        true
    }

    pub fn dispatched(&mut self, number: u64, work: Work, now: Instant) {
        self.own.push_back(Own { number, at: now, work });
        self.add_up();
    }

    /// The dispatch did not get there.
    pub fn refused(&mut self, number: u64) {
        self.own.retain(|own| own.number != number);
        self.add_up();
    }

    pub fn burden(&self) -> Burden {
        self.burden
    }

    fn add_up(&mut self) {
        let reported = self.reported.as_ref().map_or(Burden::default(), |load| Burden {
            requests: load.running + load.queued,
            prefill_tokens: load.pending_prefill_tokens,
            blocks: load.blocks_used,
        });
        self.burden = self.own.iter().fold(reported, |sum, own| Burden {
            requests: sum.requests + 1,
            prefill_tokens: sum.prefill_tokens.saturating_add(own.work.prefill_tokens),
            blocks: sum.blocks.saturating_add(own.work.blocks),
        });
    }

    /// The last report.
    pub fn reported(&self) -> Option<&Load> {
        self.reported.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{id, load};

    const WORK: Work = Work { prefill_tokens: 100, blocks: 7 };

    #[test]
    fn own_dispatches_count_until_a_report_includes_them() {
        let (me, now) = (id("router-1"), Instant::now());
        let mut view = LoadView::new(Role::Decode);
        view.heard(load("a", 1, 2), &me, now);
        view.dispatched(10, WORK, now);
        view.dispatched(12, WORK, now);
        assert_eq!(view.burden(), Burden { requests: 4, prefill_tokens: 200, blocks: 14 });
        let report = Load { seen: vec![(id("router-2"), 99), (me.clone(), 10)], ..load("a", 2, 3) };
        assert!(view.heard(report, &me, now));
        assert_eq!(view.burden().requests, 4, "the other router's number says nothing of 12");
        view.refused(12);
        assert_eq!(view.burden().requests, 3);
    }

    #[test]
    fn a_report_that_was_overtaken_changes_nothing() {
        let (me, now) = (id("router-1"), Instant::now());
        let mut view = LoadView::new(Role::Decode);
        view.heard(load("a", 2, 5), &me, now);
        assert!(!view.heard(load("a", 1, 9), &me, now));
        assert_eq!(view.burden().requests, 5);
    }

    #[test]
    fn a_dispatch_that_never_arrived_is_forgotten() {
        let (me, now) = (id("router-1"), Instant::now());
        let mut view = LoadView::new(Role::Decode);
        view.dispatched(1, WORK, now);
        view.heard(load("a", 1, 0), &me, now);
        assert_eq!(view.burden().requests, 1);
        view.heard(load("a", 2, 0), &me, now + UNCONFIRMED_FOR);
        assert_eq!(view.burden(), Burden::default());

        let mut prefill = LoadView::new(Role::Prefill);
        prefill.dispatched(1, WORK, now);
        prefill.heard(load("p", 1, 1), &me, now + PREFILL_UNCONFIRMED_FOR);
        assert_eq!(prefill.burden().prefill_tokens, 0, "the engine has kept it");
    }
}
