use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use messages::lease::Lease;

/// What was on its way when its sender went may be that late, and late again after a pause of who takes it.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
const TELL_FOR: Duration = Duration::from_secs(60);

/// Instances that are gone, of which is told again for a while: work of theirs that comes after the first time would be
/// done for nobody.
#[derive(Debug, Default)]
pub(crate) struct Departed {
    /// When to tell next, and no more.
    due: VecDeque<(Instant, Instant, Arc<Lease>)>,
}

impl Departed {
    pub fn note(&mut self, lease: Arc<Lease>, now: Instant) {
        self.due.push_back((now + AGAIN_AFTER, now + TELL_FOR, lease));
    }

    /// Those to be told of again, but for those that are back.
    pub fn due(&mut self, is_back: impl Fn(&Lease) -> bool, now: Instant) -> Vec<Arc<Lease>> {
        let mut due = Vec::new();
        while self.due.front().is_some_and(|(next, ..)| *next <= now) {
            let Some((_, last, lease)) = self.due.pop_front() else { break };
            if is_back(&lease) {
                continue;
            }
            if now < last {
                self.due.push_back((now + AGAIN_AFTER, last, lease.clone()));
            }
            due.push(lease);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use messages::{Pool, Role};

    use super::*;

    fn gone(name: &str) -> Arc<Lease> {
        Arc::new(Lease::new(Role::Ingress, Pool::http(), name.parse().unwrap()))
    }

    #[test]
    fn who_is_gone_is_told_of_again_and_who_is_back_is_not() {
        let now = Instant::now();
        let mut departed = Departed::default();
        let (lost, back) = (gone("ingress-1"), gone("ingress-2"));
        departed.note(lost.clone(), now);
        departed.note(back.clone(), now);
        let is_back = |lease: &Lease| lease.instance == back.instance;
        assert_eq!(departed.due(is_back, now), []);
        assert_eq!(departed.due(is_back, now + AGAIN_AFTER), std::slice::from_ref(&lost));
        assert_eq!(departed.due(|_| false, now + AGAIN_AFTER), [], "told already");
        assert_eq!(departed.due(|_| false, now + 2 * AGAIN_AFTER), std::slice::from_ref(&lost));
        assert_eq!(departed.due(|_| false, now + TELL_FOR), [lost]);
        assert_eq!(departed.due(|_| false, now + 2 * TELL_FOR), []);
    }
}
