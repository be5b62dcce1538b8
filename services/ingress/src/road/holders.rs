//! Who holds a request, and when each was last heard of.

use std::time::{Duration, Instant};

use messages::{InstanceId, Role};

/// Silence after which a holder is asked whether it lives.
pub const SILENCE: Duration = Duration::from_millis(600);

/// An instance that has, or passes on, a request.
#[derive(Debug, Clone)]
pub struct Holder {
    pub instance: InstanceId,
    /// Last sign of life of any kind.
    pub heard: Instant,
    /// Last frame or heartbeat that came through this process's inbox.
    pub spoke: Instant,
    /// A ping is on its way.
    pub asked: Option<Instant>,
}

impl Holder {
    fn new(instance: &InstanceId, now: Instant) -> Self {
        Self { instance: instance.clone(), heard: now, spoke: now, asked: None }
    }

    pub fn note(&mut self, now: Instant) {
        self.heard = now;
        self.spoke = now;
    }

    /// Starts its clocks anew; a question on its way is void.
    pub fn give_time(&mut self, now: Instant) {
        self.note(now);
        self.asked = None;
    }

    /// When it is due to be asked.
    pub fn due(&self) -> Option<Instant> {
        self.asked.is_none().then(|| self.heard + SILENCE)
    }
}

/// The tokenizer that took the request last.
#[derive(Debug, Clone)]
pub struct Follower {
    instance: InstanceId,
    /// It has spoken of the run since.
    follows: bool,
}

impl Follower {
    pub fn new(tokenizer: &InstanceId) -> Self {
        Self { instance: tokenizer.clone(), follows: false }
    }
}

/// The holders of the current attempt. Once an engine has it, the router has done its part.
#[derive(Debug, Clone, Default)]
pub struct Holders {
    pub tokenizer: Option<Holder>,
    pub router: Option<Holder>,
    pub engine: Option<Holder>,
    pub follower: Option<Follower>,
}

impl Holders {
    /// A tokenizer speaks of the run.
    pub fn follows(&mut self, tokenizer: &InstanceId) {
        if let Some(follower) = &mut self.follower {
            follower.follows |= follower.instance == *tokenizer;
        }
    }

    /// Whether another tokenizer than this one was asked to follow the run, and does.
    pub fn are_rivalled_by(&self, tokenizer: &InstanceId) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.follows && follower.instance != *tokenizer)
    }

    pub fn slot(&mut self, role: Role) -> Option<&mut Option<Holder>> {
        match role {
            Role::Tokenizer => Some(&mut self.tokenizer),
            Role::Router => Some(&mut self.router),
            Role::Decode => Some(&mut self.engine),
            Role::Ingress | Role::Prefill | Role::Planner => None,
        }
    }

    /// Takes `instance` for the holder of that role.
    pub fn set(&mut self, role: Role, instance: &InstanceId, now: Instant) {
        let Some(slot) = self.slot(role) else { return };
        match slot {
            Some(holder) if holder.instance == *instance => holder.note(now),
            _ => *slot = Some(Holder::new(instance, now)),
        }
    }

    /// Notes a sign of life of a holder; others' are ignored.
    pub fn note(&mut self, role: Role, instance: &InstanceId, now: Instant) {
        if let Some(Some(holder)) = self.slot(role)
            && holder.instance == *instance
        {
            holder.note(now);
        }
    }

    pub fn find(&mut self, instance: &InstanceId) -> Option<(Role, &mut Holder)> {
        [
            (Role::Tokenizer, &mut self.tokenizer),
            (Role::Router, &mut self.router),
            (Role::Decode, &mut self.engine),
        ]
        .into_iter()
        .find_map(|(role, slot)| slot.as_mut().filter(|h| h.instance == *instance).map(|h| (role, h)))
    }

    /// Starts all clocks anew; questions on their way are void.
    pub fn give_time(&mut self, now: Instant) {
        for holder in [&mut self.tokenizer, &mut self.router, &mut self.engine].into_iter().flatten() {
            holder.give_time(now);
        }
    }
}
