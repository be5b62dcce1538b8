use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use messages::{Attempt, RequestId, RunId, control::Cancel};
use parking_lot::Mutex;

/// How long a cancel waits for the work it overtook.
pub const TOMBSTONE_FOR: Duration = Duration::from_secs(60);
/// Beyond this the oldest are forgotten: a cancel storm costs memory of this size and no more.
const AT_MOST: usize = 65_536;

/// Cancels whose request is not (or no longer) here: work that arrives later meets them and ends at once.
#[derive(Debug, Default)]
pub struct Tombstones {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_request: HashMap<RequestId, Vec<Cancel>>,
    order: VecDeque<(Instant, RequestId)>,
}

impl Tombstones {
    /// Remembers a cancel. Cancels of single choices end with their run and leave none.
    pub fn bury(&self, cancel: &Cancel) {
        if cancel.choice.is_some() {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        state.forget_old(now);
        let known = state.by_request.entry(cancel.request).or_default();
        if !known.contains(cancel) {
            known.push(cancel.clone());
            state.order.push_back((now, cancel.request));
        }
    }

    /// Whether this work was cancelled before it came.
    pub fn meets(&self, request: RequestId, attempt: Attempt, run: Option<RunId>) -> bool {
        let mut state = self.state.lock();
        state.forget_old(Instant::now());
        state.by_request.get(&request).is_some_and(|cancels| {
            cancels.iter().any(|c| attempt <= c.attempt && c.run.is_none_or(|named| Some(named) == run))
        })
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        while let Some((buried, request)) = self.order.front() {
            if now.duration_since(*buried) < TOMBSTONE_FOR && self.order.len() <= AT_MOST {
                break;
            }
            if let Some(cancels) = self.by_request.get_mut(request) {
                if cancels.len() > 1 {
                    cancels.remove(0);
                } else {
                    self.by_request.remove(request);
                }
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancel(request: RequestId, attempt: u32, run: Option<RunId>) -> Cancel {
        Cancel { request, attempt: Attempt(attempt), run, choice: None }
    }

    #[test]
    fn a_cancel_meets_its_attempt_and_older_ones_but_no_newer() {
        let tombstones = Tombstones::default();
        let request = RequestId::mint();
        tombstones.bury(&cancel(request, 2, None));
        assert!(tombstones.meets(request, Attempt(1), None));
        assert!(tombstones.meets(request, Attempt(2), Some(RunId(7))));
        assert!(!tombstones.meets(request, Attempt(3), None));
        assert!(!tombstones.meets(RequestId::mint(), Attempt(1), None));
    }

    #[test]
    fn a_cancelled_run_leaves_the_other_runs_of_its_attempt_alone() {
        let tombstones = Tombstones::default();
        let request = RequestId::mint();
        tombstones.bury(&cancel(request, 1, Some(RunId(7))));
        assert!(tombstones.meets(request, Attempt(1), Some(RunId(7))));
        assert!(!tombstones.meets(request, Attempt(1), Some(RunId(8))));
        assert!(!tombstones.meets(request, Attempt(1), None));
    }

    #[test]
    fn memory_is_bounded() {
        let tombstones = Tombstones::default();
        for _ in 0..AT_MOST + 100 {
            tombstones.bury(&cancel(RequestId::mint(), 1, None));
        }
        assert!(tombstones.state.lock().by_request.len() <= AT_MOST + 1);
    }
}
