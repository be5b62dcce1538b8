//! Requests that wait because engines are full: strict priorities, and within one of them fair shares per tenant.

mod level;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use level::Level;

/// One waiting request, in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// What is known of a request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Higher goes first.
    pub priority: i32,
    /// Whose share it takes; all without a name share one.
    pub tenant: String,
    /// Tokens that it will take, roughly.
    pub tokens: u32,
}

/// A bounded queue. Of equal priority, tenants take turns by deficit round robin (Shreedhar and Varghese, 1995) over
/// tokens; a tenant's own requests stay in order.
#[derive(Debug)]
pub struct Queue<T> {
    /// Those that had their turn and came back: they go first.
    returned: VecDeque<(Place, T)>,
    levels: BTreeMap<Reverse<i32>, Level<T>>,
    len: usize,
    limit: usize,
    next: u64,
}

/// What became of a request that wanted to wait.
#[derive(Debug, PartialEq)]
pub enum Entered<T> {
    Waits(Place),
    /// The queue was full of others' requests: the newest of the tenant with most of them had to go.
    WaitsInsteadOf(Place, T),
    Full(T),
}

impl<T> Queue<T> {
    pub fn new(limit: usize) -> Self {
        Self { returned: VecDeque::new(), levels: BTreeMap::new(), len: 0, limit, next: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn enter(&mut self, claim: &Claim, item: T) -> Entered<T> {
        let evicted = if self.len >= self.limit {
            match self.evict_for(claim) {
                Some(evicted) => Some(evicted),
                None => return Entered::Full(item),
            }
        } else {
            None
        };
        let place = self.next_place();
        self.levels.entry(Reverse(claim.priority)).or_default().push(claim, place, item);
        match evicted {
            Some(evicted) => Entered::WaitsInsteadOf(place, evicted),
            None => Entered::Waits(place),
        }
    }

    /// Takes in what had its turn before, whatever the limit.
    pub fn come_back(&mut self, item: T) -> Place {
        let place = self.next_place();
        self.returned.push_back((place, item));
        place
    }

    fn next_place(&mut self) -> Place {
        let place = Place(self.next);
        self.next += 1;
        self.len += 1;
        place
    }

    /// Whether one that came back waits.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// The next one to go.
    pub fn pop(&mut self) -> Option<T> {
        if let Some((_, item)) = self.returned.pop_front() {
            self.len -= 1;
            return Some(item);
        }
        let mut first = self.levels.first_entry()?;
        let item = first.get_mut().pop();
        if first.get().is_empty() {
            first.remove();
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Takes one out that came back and waits no more.
    pub fn leave_again(&mut self, place: Place) -> Option<T> {
        let at = self.returned.iter().position(|(there, _)| *there == place)?;
        let (_, item) = self.returned.remove(at)?;
        self.len -= 1;
        Some(item)
    }

    /// Takes one out that waits no more.
    pub fn leave(&mut self, claim: &Claim, place: Place) -> Option<T> {
        let level = self.levels.get_mut(&Reverse(claim.priority))?;
        let item = level.remove(&claim.tenant, place);
        if level.is_empty() {
            self.levels.remove(&Reverse(claim.priority));
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Makes room from the lowest priority, at most that of `claim`: there the tenant with most requests gives up its
    /// newest, unless `claim` is of that level and its tenant has as many.
    fn evict_for(&mut self, claim: &Claim) -> Option<T> {
        let (Reverse(priority), level) = self.levels.iter_mut().next_back()?;
        let fair = match claim.priority.cmp(priority) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => level.waiting(&claim.tenant) + 1 < level.most(),
            std::cmp::Ordering::Greater => true,
        };
        if !fair {
            return None;
        }
        let (priority, evicted) = (*priority, level.evict());
        if level.is_empty() {
            self.levels.remove(&Reverse(priority));
        }
        self.len -= usize::from(evicted.is_some());
        evicted
    }
}

#[cfg(test)]
mod tests;
