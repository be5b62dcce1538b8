use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{
    InstanceId, Pool, Role,
    lease::{Lease, ModelCard, State},
};

use super::{DISTRUST_FOR, Leases, TTL};
use crate::lease::RENEW_EVERY;

/// Own renewals that may be missing before bucket or watch are doubted.
const OWN_MISSES: u32 = 2;
/// For so long a model is remembered after its last instance: all of them may be about to come back.
const MODEL_REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// The leases that are held, by key; pure, the clock is passed in.
///
/// Leases end by being given back, by expiry (an event of the bucket) or by not being renewed. The latter two do not
/// count while this process distrusts what it sees: after its own reconnect or pause, on a new bucket, while its own
/// lease is not renewed before its eyes, or when more than half of several vanish at once. A bucket whose leader is
/// lost ends all leases in the same moment, those of the living too.
#[derive(Debug)]
pub(super) struct Roll {
    held: HashMap<String, Held>,
    /// What requests ask for, kept as `held` changes: that is seldom.
    by_instance: HashMap<InstanceId, Arc<Lease>>,
    ready: HashMap<Pool, BTreeMap<Role, Leases>>,
    models: Arc<[Arc<ModelCard>]>,
    /// Cards of leases that are gone, by model: the newest, and when its lease was last renewed.
    remembered: BTreeMap<String, (Arc<ModelCard>, Instant)>,
    /// Key of this process's own lease.
    own: Option<String>,
    distrusted_until: Instant,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    renewed: Instant,
    expired: bool,
}

/// Leases, and how many of them are gone.
#[derive(Debug, Default)]
struct Toll {
    all: usize,
    gone: usize,
}

impl Toll {
    fn count(&mut self, gone: bool) {
        self.all += 1;
        self.gone += usize::from(gone);
    }

    fn is_doubtful(&self) -> bool {
        self.gone > 1 && self.gone * 2 > self.all
    }
}

impl Roll {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            held: HashMap::new(),
            by_instance: HashMap::new(),
            ready: HashMap::new(),
            models: Arc::default(),
            remembered: BTreeMap::new(),
            own: None,
            distrusted_until: now,
        }
    }

    pub(super) fn own(&mut self, key: String) {
        self.own = Some(key);
    }

    /// For how long the own lease was not renewed; `None` before it was seen at all.
    pub(super) fn own_unseen(&self, now: Instant) -> Option<Duration> {
        let held = self.held.get(self.own.as_ref()?)?;
        Some(now.saturating_duration_since(held.renewed))
    }

    pub(super) fn distrust(&mut self, now: Instant) {
        self.distrusted_until = now + DISTRUST_FOR;
    }

    /// Takes a renewal; true if it says anything new.
    pub(super) fn renewed(&mut self, key: &str, lease: Lease, now: Instant) -> bool {
        if let Some(held) = self.held.get_mut(key) {
            held.renewed = now;
            held.expired = false;
            if *held.lease == lease {
                return false;
            }
        }
        let lease = Arc::new(lease);
        self.held.insert(key.to_owned(), Held { lease: lease.clone(), renewed: now, expired: false });
        self.by_instance.insert(lease.instance.clone(), lease.clone());
        self.changed(&lease);
        true
    }

    /// Its owner has dropped a lease: whatever one thinks of oneself, that counts.
    pub(super) fn given_back(&mut self, key: &str) -> Option<Arc<Lease>> {
        self.remove(key)
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Lease>> {
        let Held { lease, renewed, .. } = self.held.remove(key)?;
        if let Some(card) = &lease.card {
            self.remembered.insert(card.name.clone(), (Arc::new(card.clone()), renewed));
        }
        self.by_instance.remove(&lease.instance);
        self.changed(&lease);
        Some(lease)
    }

    /// A lease has come, gone, or says something new.
    fn changed(&mut self, lease: &Lease) {
        let is_ready = |other: &&Arc<Lease>| {
            other.role == lease.role && other.pool == lease.pool && other.state == State::Ready
        };
        let mut ready: Vec<_> = self.by_instance.values().filter(is_ready).cloned().collect();
        ready.sort_by(|a, b| a.instance.cmp(&b.instance));
        let roles = self.ready.entry(lease.pool.clone()).or_default();
        roles.insert(lease.role, ready.into());
        roles.retain(|_, ready| !ready.is_empty());
        if roles.is_empty() {
            self.ready.remove(&lease.pool);
        }
        if lease.card.is_some() {
            self.models = self.newest_cards();
        }
    }

    fn newest_cards(&self) -> Arc<[Arc<ModelCard>]> {
        let mut newest: BTreeMap<&str, (u64, &ModelCard)> = BTreeMap::new();
        for lease in self.by_instance.values() {
            let Some(card) = &lease.card else { continue };
            let found = newest.entry(&card.name).or_insert((lease.started_ms, card));
            if found.0 < lease.started_ms {
                *found = (lease.started_ms, card);
            }
        }
        newest.into_values().map(|(_, card)| Arc::new(card.clone())).collect()
    }

    /// The bucket has dropped a lease: [`Self::overdue`] decides what that means.
    pub(super) fn expired(&mut self, key: &str) {
        if let Some(held) = self.held.get_mut(key) {
            held.expired = true;
        }
    }

    /// Removes leases that have expired or were due long ago.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        if self.own_unseen(now).is_some_and(|time| time > RENEW_EVERY * OWN_MISSES) {
            self.distrust(now);
        }
        if now < self.distrusted_until {
            return Vec::new();
        }
        let late = |held: &Held| held.expired || now.duration_since(held.renewed) > DISTRUST_FOR;
        let mut pools: BTreeMap<(Role, Pool), Toll> = BTreeMap::new();
        let mut all = Toll::default();
        for held in self.held.values() {
            let gone = late(held);
            pools.entry((held.lease.role, held.lease.pool.clone())).or_default().count(gone);
            all.count(gone);
        }
        let doubtful = all.is_doubtful() || pools.values().any(Toll::is_doubtful);
        let longest = |held: &Held| now.duration_since(held.renewed) > DISTRUST_FOR + TTL;
        if doubtful && !self.held.values().any(longest) {
            self.distrust(now);
            return Vec::new();
        }
        let keys: Vec<String> =
            self.held.iter().filter(|(_, held)| late(held)).map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    pub(super) fn ready(&self, role: Role, pool: &Pool) -> Leases {
        self.ready.get(pool).and_then(|roles| roles.get(&role)).cloned().unwrap_or_default()
    }

    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        let mut found: Vec<_> = self.held.values().map(|held| held.lease.clone()).collect();
        found.sort_by(|a, b| (a.role, &a.pool, &a.instance).cmp(&(b.role, &b.pool, &b.instance)));
        found
    }

    pub(super) fn get(&self, instance: &InstanceId) -> Option<Arc<Lease>> {
        self.by_instance.get(instance).cloned()
    }

    /// The model of this name, if an instance of it lives or did not long ago.
    pub(super) fn model(&self, name: &str, now: Instant) -> Option<Arc<ModelCard>> {
        let living = self.models.iter().find(|card| card.name == name).cloned();
        living.or_else(|| {
            let (card, renewed) = self.remembered.get(name)?;
            (now.saturating_duration_since(*renewed) < MODEL_REMEMBERED_FOR).then(|| card.clone())
        })
    }

    pub(super) fn models(&self) -> Arc<[Arc<ModelCard>]> {
        self.models.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str) -> Lease {
        let pool = Pool::of_model("m", "00");
        Lease { state: State::Ready, ..Lease::new(Role::Decode, pool, name.parse().unwrap()) }
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
        let mut roll = roll_of(&["a", "b", "c", "d"], start);
        roll.expired("a");
        assert_eq!(roll.overdue(start).len(), 1);
        roll.distrust(start);
        roll.expired("b");
        assert!(roll.overdue(start).is_empty());
        assert!(roll.given_back("b").is_some(), "a lease given back is gone whatever one thinks of oneself");
    }

    #[test]
    fn a_lease_that_expired_and_is_renewed_has_never_gone() {
        let start = Instant::now();
        let mut roll = roll_of(&["a", "b", "c"], start);
        roll.expired("a");
        roll.renewed("a", lease("a"), start);
        assert!(roll.overdue(start).is_empty());
    }

    #[test]
    fn who_does_not_see_his_own_lease_renewed_judges_nobody() {
        let start = Instant::now();
        let mut roll = roll_of(&["me", "b", "c", "d"], start);
        roll.own("me".to_owned());
        let later = start + Duration::from_millis(2500);
        roll.expired("b");
        assert!(roll.overdue(later).is_empty());
        for kept in ["me", "c", "d"] {
            roll.renewed(kept, lease(kept), later);
        }
        assert!(roll.overdue(later).is_empty(), "and for a while after");
        let much_later = later + DISTRUST_FOR;
        for kept in ["me", "c", "d"] {
            roll.renewed(kept, lease(kept), much_later);
        }
        assert_eq!(roll.overdue(much_later)[0].instance.as_str(), "b");
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

    #[test]
    fn who_is_ready_is_told_by_role_and_pool_and_made_anew_only_when_it_changes() {
        let start = Instant::now();
        let mut roll = roll_of(&["b", "a"], start);
        let pool = Pool::of_model("m", "00");
        let prefill = Lease { role: Role::Prefill, ..lease("p") };
        let elsewhere = Lease { pool: Pool::of_model("other", "00"), ..lease("c") };
        for (key, lease) in [("p", prefill), ("c", elsewhere)] {
            roll.renewed(key, lease, start);
        }
        let names = |ready: &[Arc<Lease>]| -> Vec<String> {
            ready.iter().map(|lease| lease.instance.to_string()).collect()
        };
        let before = roll.ready(Role::Decode, &pool);
        assert_eq!(names(&before), ["a", "b"]);
        roll.renewed("a", lease("a"), start);
        assert!(Arc::ptr_eq(&before, &roll.ready(Role::Decode, &pool)), "nothing is new");
        roll.renewed("a", Lease { state: State::Draining, ..lease("a") }, start);
        assert_eq!(names(&roll.ready(Role::Decode, &pool)), ["b"]);
        assert_eq!(roll.get(&"a".parse().unwrap()).unwrap().state, State::Draining);
        roll.given_back("b");
        assert!(roll.ready(Role::Decode, &pool).is_empty() && roll.get(&"b".parse().unwrap()).is_none());
        assert_eq!(names(&roll.ready(Role::Prefill, &pool)), ["p"]);
        assert_eq!(names(&roll.ready(Role::Decode, &Pool::of_model("other", "00"))), ["c"]);
    }

    #[test]
    fn a_model_is_remembered_for_some_minutes_after_its_last_instance() {
        let start = Instant::now();
        let mut roll = Roll::new(start);
        let card = ModelCard {
            name: "m".to_owned(),
            revision: "00".to_owned(),
            path: "m.gguf".to_owned(),
            context_length: 8,
            vocab_size: 2,
            architecture: "llama".to_owned(),
            has_chat_template: false,
            eos_ids: vec![1],
            defaults: Default::default(),
            created: 0,
        };
        roll.renewed("a", Lease { card: Some(card), ..lease("a") }, start);
        roll.given_back("a");
        assert!(roll.models().is_empty());
        assert_eq!(roll.model("m", start + Duration::from_secs(60)).unwrap().name, "m");
        assert!(roll.model("other", start).is_none());
        assert!(roll.model("m", start + MODEL_REMEMBERED_FOR).is_none());
    }
}
