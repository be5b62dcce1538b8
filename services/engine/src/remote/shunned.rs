use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use messages::{Fault, FaultCode, InstanceId};

const SHUNNED_FOR: Duration = Duration::from_secs(30);

/// Prefill engines whose blocks did not get through: for a while nothing is asked of them, then once more.
#[derive(Debug, Default)]
pub(super) struct Shunned {
    until: HashMap<InstanceId, Instant>,
}

/// Whether a failed task says something of the engine, not of the task: its device or the transfer failed.
pub(super) fn is_engines_fault(fault: &Fault) -> bool {
    matches!(fault.code, FaultCode::EngineFault | FaultCode::Internal)
}

impl Shunned {
    /// True if it was not shunned already.
    pub fn add(&mut self, prefill: &InstanceId, now: Instant) -> bool {
        self.until.retain(|_, until| *until > now);
        self.until.insert(prefill.clone(), now + SHUNNED_FOR).is_none()
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
        assert!(shunned.add(&failed, start), "that is news");
        assert!(!shunned.add(&failed, start), "another of the same moment is none");
        assert!(shunned.contains(&failed, start) && !shunned.contains(&other, start));
        assert!(!shunned.contains(&failed, start + SHUNNED_FOR));
        assert!(shunned.add(&failed, start + SHUNNED_FOR), "it failed again");
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
            assert_eq!(is_engines_fault(&Fault::new(code, "")), speaks, "{code:?}");
        }
    }

    #[test]
    fn help_is_an_instance_that_is_not_shunned() {
        let (mut shunned, start) = (Shunned::default(), Instant::now());
        let prefills: [InstanceId; 2] = ["prefill-1", "prefill-2"].map(|name| name.parse().unwrap());
        assert!(!shunned.leave_any([].iter(), start));
        shunned.add(&prefills[0], start);
        assert!(shunned.leave_any(prefills.iter(), start));
        assert!(!shunned.leave_any(prefills[..1].iter(), start), "the only one is shunned");
        assert_eq!(shunned.all(start), [prefills[0].clone()]);
        assert!(shunned.leave_any(prefills[..1].iter(), start + SHUNNED_FOR));
        assert!(shunned.all(start + SHUNNED_FOR).is_empty());
    }
}
