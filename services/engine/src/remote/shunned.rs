use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{InstanceId, lease::Lease};

const SHUNNED_FOR: Duration = Duration::from_secs(30);

/// Prefill engines whose blocks did not get through: for a while nothing is asked of them, then once more.
#[derive(Debug, Default)]
pub(super) struct Shunned {
    until: HashMap<InstanceId, Instant>,
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

    /// Whether one of `prefills` can be asked for pages of this layout.
    pub fn leave_any(&self, prefills: &[Arc<Lease>], layout: &str, now: Instant) -> bool {
        prefills
            .iter()
            .any(|lease| lease.reads_pages_as(Some(layout)) && !self.contains(&lease.instance, now))
    }
}

#[cfg(test)]
mod tests {
    use messages::{Pool, Role};

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
    fn help_is_an_instance_of_the_same_layout_that_is_not_shunned() {
        let (mut shunned, start) = (Shunned::default(), Instant::now());
        let prefill = |name: &str, layout: &str| {
            let lease = Lease::new(Role::Prefill, Pool::of_model("m", "00"), name.parse().unwrap());
            Arc::new(Lease { kv_layout: Some(layout.to_owned()), ..lease })
        };
        let prefills = [prefill("prefill-1", "f16"), prefill("prefill-2", "f32")];
        assert!(shunned.leave_any(&prefills, "f16", start));
        shunned.add(&prefills[0].instance, start);
        assert!(!shunned.leave_any(&prefills, "f16", start), "the only one that is of use is shunned");
        assert!(shunned.leave_any(&prefills, "f32", start));
        assert_eq!(shunned.all(start), [prefills[0].instance.clone()]);
        assert!(shunned.leave_any(&prefills, "f16", start + SHUNNED_FOR));
        assert!(shunned.all(start + SHUNNED_FOR).is_empty());
    }
}
