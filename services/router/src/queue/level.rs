use std::collections::VecDeque;

use super::{Claim, Place};

/// Tokens that a tenant gains with each turn: less than most requests take, so that tenants alternate by requests.
const QUANTUM: u32 = 64;

/// Requests of one priority.
#[derive(Debug)]
pub(super) struct Level<T> {
    /// Those with requests, in the order of their turns.
    tenants: VecDeque<Tenant<T>>,
}

#[derive(Debug)]
struct Tenant<T> {
    name: String,
    /// Tokens that it may still take in this turn.
    deficit: u32,
    waiting: VecDeque<(Place, u32, T)>,
}

impl<T> Tenant<T> {
    /// What its next request takes.
    fn next_tokens(&self) -> u32 {
        self.waiting.front().map_or(0, |(_, tokens, _)| *tokens)
    }
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self { tenants: VecDeque::new() }
    }
}

impl<T> Level<T> {
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    pub fn push(&mut self, claim: &Claim, place: Place, item: T) {
        let waiting = (place, claim.tokens, item);
        match self.tenants.iter_mut().find(|tenant| tenant.name == claim.tenant) {
            Some(tenant) => tenant.waiting.push_back(waiting),
            None => self.tenants.push_back(Tenant {
                name: claim.tenant.clone(),
                deficit: QUANTUM,
                waiting: VecDeque::from([waiting]),
            }),
        }
    }

    pub fn pop(&mut self) -> Option<T> {
        self.skip_rounds();
        loop {
            let tenant = self.tenants.front_mut()?;
            let tokens = tenant.next_tokens();
            if tokens > tenant.deficit {
                tenant.deficit = tenant.deficit.saturating_add(QUANTUM);
                self.tenants.rotate_left(1);
                continue;
            }
            tenant.deficit -= tokens;
            let item = tenant.waiting.pop_front();
            if tenant.waiting.is_empty() {
                self.tenants.pop_front();
            }
            return item.map(|(.., item)| item);
        }
    }

    /// Rounds in which nobody could go, all at once.
    fn skip_rounds(&mut self) {
        let short =
            self.tenants.iter().map(|tenant| tenant.next_tokens().saturating_sub(tenant.deficit)).min();
        let gain = short.unwrap_or(0).saturating_sub(1) / QUANTUM * QUANTUM;
        for tenant in &mut self.tenants {
            tenant.deficit = tenant.deficit.saturating_add(gain);
        }
    }

    pub fn remove(&mut self, name: &str, place: Place) -> Option<T> {
        let turn = self.tenants.iter().position(|tenant| tenant.name == name)?;
        let waiting = &mut self.tenants[turn].waiting;
        let at = waiting.iter().position(|(there, ..)| *there == place)?;
        let item = waiting.remove(at);
        self.drop_if_empty(turn);
        item.map(|(.., item)| item)
    }

    pub fn waiting(&self, name: &str) -> usize {
        self.tenants.iter().find(|tenant| tenant.name == name).map_or(0, |tenant| tenant.waiting.len())
    }

    /// Requests of the tenant that has most.
    pub fn most(&self) -> usize {
        self.tenants.iter().map(|tenant| tenant.waiting.len()).max().unwrap_or(0)
    }

    /// The newest request of the tenant that has most.
    pub fn evict(&mut self) -> Option<T> {
        let turn = (0..self.tenants.len()).max_by_key(|turn| self.tenants[*turn].waiting.len())?;
        let item = self.tenants[turn].waiting.pop_back();
        self.drop_if_empty(turn);
        item.map(|(.., item)| item)
    }

    fn drop_if_empty(&mut self, turn: usize) {
        if self.tenants[turn].waiting.is_empty() {
            self.tenants.remove(turn);
        }
    }
}
