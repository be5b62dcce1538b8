use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use messages::{
    InstanceId, Pool, Role,
    lease::{Lease, ModelCard, State},
};

use super::{DISTRUST_FOR, TTL};

/// The leases that are held, by key; pure, the clock is passed in.
///
/// Leases end by an event of the bucket or by not being renewed. Neither counts while this process distrusts itself:
/// after its own reconnect or pause, on a new bucket, or when more than half a pool of several vanishes at once.
#[derive(Debug)]
pub(super) struct Roll {
    held: HashMap<String, Held>,
    distrusted_until: Instant,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    renewed: Instant,
}

impl Roll {
    pub(super) fn new(now: Instant) -> Self {
        Self { held: HashMap::new(), distrusted_until: now }
    }

    pub(super) fn distrust(&mut self, now: Instant) {
        self.distrusted_until = now + DISTRUST_FOR;
    }

    /// Takes a renewal; true if it says anything new.
    pub(super) fn renewed(&mut self, key: &str, lease: Lease, now: Instant) -> bool {
        match self.held.get_mut(key) {
            Some(held) => {
                held.renewed = now;
                let news = *held.lease != lease;
                if news {
                    held.lease = Arc::new(lease);
                }
                news
            }
            None => {
                self.held.insert(key.to_owned(), Held { lease: Arc::new(lease), renewed: now });
                true
            }
        }
    }

    /// Takes an end; `by_owner` tells a lease given back from one that expired.
    pub(super) fn ended(&mut self, key: &str, by_owner: bool, now: Instant) -> Option<Arc<Lease>> {
        if !by_owner && now < self.distrusted_until {
            return None;
        }
        self.held.remove(key).map(|held| held.lease)
    }

    /// Removes leases that were due long ago.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        if now < self.distrusted_until {
            return Vec::new();
        }
        let late = |held: &Held| now.duration_since(held.renewed) > DISTRUST_FOR;
        let mut pools: BTreeMap<(Role, Pool), (usize, usize)> = BTreeMap::new();
        for held in self.held.values() {
            let (all, gone) = pools.entry((held.lease.role, held.lease.pool.clone())).or_default();
            *all += 1;
            *gone += usize::from(late(held));
        }
        let doubtful = pools.values().any(|(all, gone)| *gone > 1 && gone * 2 > *all);
        let longest = |held: &Held| now.duration_since(held.renewed) > DISTRUST_FOR + TTL;
        if doubtful && !self.held.values().any(longest) {
            self.distrust(now);
            return Vec::new();
        }
        let keys: Vec<String> =
            self.held.iter().filter(|(_, held)| late(held)).map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| self.held.remove(key)).map(|held| held.lease).collect()
    }

    pub(super) fn ready(&self, role: Role, pool: &Pool) -> Vec<Arc<Lease>> {
        let mut found: Vec<_> = self
            .held
            .values()
            .map(|held| &held.lease)
            .filter(|lease| lease.role == role && lease.pool == *pool && lease.state == State::Ready)
            .cloned()
            .collect();
        found.sort_by(|a, b| a.instance.cmp(&b.instance));
        found
    }

    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        let mut found: Vec<_> = self.held.values().map(|held| held.lease.clone()).collect();
        found.sort_by(|a, b| (a.role, &a.pool, &a.instance).cmp(&(b.role, &b.pool, &b.instance)));
        found
    }

    pub(super) fn get(&self, instance: &InstanceId) -> Option<Arc<Lease>> {
        self.held.values().find(|held| held.lease.instance == *instance).map(|held| held.lease.clone())
    }

    pub(super) fn models(&self) -> Vec<Arc<ModelCard>> {
        let mut newest: BTreeMap<String, (u64, Arc<ModelCard>)> = BTreeMap::new();
        for lease in self.held.values().map(|held| &held.lease) {
            let Some(card) = &lease.card else { continue };
            let started = lease.started_ms;
            match newest.get(&card.name) {
                Some((known, _)) if *known >= started => {}
                _ => {
                    newest.insert(card.name.clone(), (started, Arc::new(card.clone())));
                }
            }
        }
        newest.into_values().map(|(_, card)| card).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lease(name: &str) -> Lease {
        Lease {
            role: Role::Decode,
            pool: Pool::of_model("m", "00"),
            instance: name.parse().unwrap(),
            state: State::Ready,
            version: String::new(),
            host: String::new(),
            pid: 1,
            started_ms: 0,
            admin: None,
            card: None,
            numerics_class: None,
            kv_tokens: None,
            page_size: None,
        }
    }

    fn roll_of(names: &[&str], now: Instant) -> Roll {
        let mut roll = Roll::new(now);
        for name in names {
            assert!(roll.renewed(name, lease(name), now));
        }
        roll
    }

    #[test]
    fn a_lease_that_is_not_renewed_ends() {
        let start = Instant::now();
        let mut roll = roll_of(&["a", "b", "c"], start);
        let later = start + Duration::from_secs(5);
        for kept in ["a", "b"] {
            assert!(!roll.renewed(kept, lease(kept), later));
        }
        let gone = roll.overdue(later);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].instance.as_str(), "c");
        assert!(roll.get(&"c".parse().unwrap()).is_none());
    }

    #[test]
    fn an_expiry_event_counts_at_once_but_not_while_distrusted() {
        let start = Instant::now();
        let mut roll = roll_of(&["a", "b"], start);
        assert!(roll.ended("a", false, start).is_some());
        roll.distrust(start);
        assert!(roll.ended("b", false, start).is_none());
        assert!(
            roll.ended("b", true, start).is_some(),
            "a lease given back is gone whatever one thinks of oneself"
        );
    }

    #[test]
    fn when_most_of_a_pool_vanishes_at_once_it_waits_before_it_believes() {
        let start = Instant::now();
        let mut roll = roll_of(&["a", "b", "c"], start);
        let later = start + Duration::from_secs(5);
        roll.renewed("a", lease("a"), later);
        assert!(roll.overdue(later).is_empty());
        let much_later = later + DISTRUST_FOR + Duration::from_secs(1);
        roll.renewed("a", lease("a"), much_later);
        assert_eq!(roll.overdue(much_later).len(), 2);
    }
}
