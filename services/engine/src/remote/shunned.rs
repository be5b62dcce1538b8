use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use messages::{Fault, FaultCode, InstanceId};

use crate::handover::Why;

/// Where blocks do not get through.
const NO_WAY: Duration = Duration::from_secs(30);
/// Where nobody answers. One that has died is forgotten by then.
const NO_ANSWER: Duration = Duration::from_secs(5);

/// Prefill engines that let a prompt down: for a while nothing is asked of them, then once more.
#[derive(Debug, Default)]
pub(super) struct Shunned {
    until: HashMap<InstanceId, Instant>,
}

/// What a failed task says of the engine.
pub(super) fn meaning(fault: &Fault) -> Why {
    match fault.code {
        FaultCode::EngineFault | FaultCode::Internal => Why::Failed,
        _ => Why::GivenUp,
    }
}

/// How long to ask nothing of an engine from which a prompt was taken back, if that speaks against it.
pub(super) fn after(why: Why) -> Option<Duration> {
    match why {
        Why::Failed | Why::Stalled => Some(NO_WAY),
        Why::Unanswered | Why::Silent | Why::Gone => Some(NO_ANSWER),
        Why::Refused | Why::Slow | Why::GivenUp | Why::NoSlots | Why::NoRoom | Why::TransferBroke => None,
    }
}

impl Shunned {
    /// True if it was not shunned already.
    pub fn add(&mut self, prefill: &InstanceId, time: Duration, now: Instant) -> bool {
        self.until.retain(|_, until| *until > now);
        let known = self.until.get(prefill).copied();
        self.until.insert(prefill.clone(), known.unwrap_or(now).max(now + time));
        known.is_none()
    }

    pub fn contains(&self, prefill: &InstanceId, now: Instant) -> bool {
        self.until.get(prefill).is_some_and(|until| *until > now)
    }

    pub fn all(&self, now: Instant) -> Vec<InstanceId> {
        self.until.iter().filter(|(_, until)| **until > now).map(|(prefill, _)| prefill.clone()).collect()
    }

    /// Whether one of `prefills` can be asked.
    pub fn leave_any<'a>(&self, mut prefills: impl Iterator<Item = &'a InstanceId>, now: Instant) -> bool {
        prefills.any(|prefill| !self.contains(prefill, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_is_asked_nothing_for_a_while() {
        let (mut shunned, start) = (Shunned::default(), Instant::now());
        let (failed, other) = ("prefill-1".parse().unwrap(), "prefill-2".parse().unwrap());
        assert!(shunned.add(&failed, NO_WAY, start), "that is news");
        assert!(!shunned.add(&failed, NO_ANSWER, start), "another of the same moment is none");
        assert!(shunned.contains(&failed, start + NO_ANSWER) && !shunned.contains(&other, start));
        assert!(!shunned.contains(&failed, start + NO_WAY));
        assert!(shunned.add(&failed, NO_WAY, start + NO_WAY), "it failed again");
    }

    #[test]
    fn only_what_an_engine_could_not_do_speaks_against_it() {
        use FaultCode::*;
        for (code, speaks) in [
            (EngineFault, true),
            (Internal, true),
            (NeverFits, false),
            (ContextLengthExceeded, false),
            (Overloaded, false),
            (DeadlineExceeded, false),
            (Draining, false),
            (Cancelled, false),
        ] {
            let why = meaning(&Fault::new(code, ""));
            assert_eq!(after(why).is_some(), speaks, "{code:?}");
        }
    }

    #[test]
    fn who_does_not_answer_is_asked_nothing_for_a_shorter_while() {
        for why in [Why::Unanswered, Why::Silent, Why::Gone] {
            assert_eq!(after(why), Some(NO_ANSWER), "{why:?}");
        }
        assert_eq!(after(Why::Stalled), Some(NO_WAY));
        assert_eq!(after(Why::Slow), None);
    }

    #[test]
    fn help_is_an_instance_that_is_not_shunned() {
        let (mut shunned, start) = (Shunned::default(), Instant::now());
        let prefills: [InstanceId; 2] = ["prefill-1", "prefill-2"].map(|name| name.parse().unwrap());
        assert!(!shunned.leave_any([].iter(), start));
        shunned.add(&prefills[0], NO_WAY, start);
        assert!(shunned.leave_any(prefills.iter(), start));
        assert!(!shunned.leave_any(prefills[..1].iter(), start), "the only one is shunned");
        assert_eq!(shunned.all(start), [prefills[0].clone()]);
        assert!(shunned.leave_any(prefills[..1].iter(), start + NO_WAY));
        assert!(shunned.all(start + NO_WAY).is_empty());
    }
}
