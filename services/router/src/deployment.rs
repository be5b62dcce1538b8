//! All that this router knows of one model revision: its engines, who waits for them, and how they are chosen.

mod choose;
mod poison;
mod prefill;
mod turn;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{InstanceId, Pool, Role};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::{
    fleet::{Fleet, Member},
    policy::Pricer,
    queue::Queue,
    remote::RemoteRule,
    settings::{KvEventsMode, RouterSettings},
};
pub use choose::{Choice, SHOWN, Wish};
use poison::Sent;
pub use turn::{Grant, Turn};

pub struct Deployment {
    pub pool: Pool,
    state: Mutex<State>,
    /// Counts changes of who lives here and of what they carry.
    changed: watch::Sender<u64>,
    /// Since when no engine lives.
    deserted: watch::Sender<Option<Instant>>,
}

pub struct State {
    pub decode: Fleet,
    pub prefill: Fleet,
    pricer: Pricer,
    remote: RemoteRule,
    queue: Queue<turn::Waiter>,
    queue_above: f64,
    /// Requests that may go and have not been dispatched yet.
    granted: u32,
    rate: turn::Rate,
    /// Dispatches of requests that engines have died under, until engines report that they are no danger any more.
    poison: Vec<Sent>,
    costs: Vec<f64>,
    open: Vec<f64>,
}

impl Deployment {
    pub fn new(pool: Pool, settings: &RouterSettings) -> Arc<Self> {
        let ttl = match settings.kv_events {
            KvEventsMode::On => None,
            KvEventsMode::Off => Some(Duration::from_secs(settings.guess_ttl)),
        };
        let state = State {
            decode: Fleet::new(ttl),
            prefill: Fleet::new(ttl),
            pricer: Pricer::new(settings.policy, settings.weights(), rand::random()),
            remote: RemoteRule::of(settings),
            queue: Queue::new(settings.max_queued_requests),
            queue_above: settings.queue_above,
            granted: 0,
            rate: turn::Rate::default(),
            poison: Vec::new(),
            costs: Vec::new(),
            open: Vec::new(),
        };
        let deserted = watch::channel(Some(Instant::now())).0;
        Arc::new(Self { pool, state: Mutex::new(state), changed: watch::channel(0).0, deserted })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Tells when engines come, go, or say what they carry.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// After a change of the state: lets go whoever has waited for it.
    pub fn stir(&self) {
        let empty = {
            let mut state = self.lock();
            state.pump();
            state.decode.is_empty()
        };
        self.deserted.send_if_modified(|since| {
            let turned = since.is_some() != empty;
            if turned {
                *since = empty.then(Instant::now);
            }
            turned
        });
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Deployment {
    /// Returns once no engine has lived for as long as `hold`, `from` at the earliest.
    pub async fn forsaken(&self, from: Instant, hold: Duration) {
        let mut deserted = self.deserted.subscribe();
        loop {
            let since = *deserted.borrow_and_update();
            let over = async {
                match since {
                    Some(since) => tokio::time::sleep_until((since.max(from) + hold).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                _ = deserted.changed() => {}
            }
        }
    }
}

impl State {
    pub fn fleet_mut(&mut self, role: Role) -> &mut Fleet {
        if role == Role::Prefill { &mut self.prefill } else { &mut self.decode }
    }

    pub fn is_served(&self) -> bool {
        !self.decode.is_empty() || !self.prefill.is_empty()
    }

    /// The fleet that has this member.
    pub fn fleet_of(&mut self, instance: &InstanceId) -> Option<&mut Fleet> {
        self.fleets_mut().into_iter().find(|fleet| fleet.member(instance).is_some())
    }

    pub fn fleets_mut(&mut self) -> [&mut Fleet; 2] {
        [&mut self.decode, &mut self.prefill]
    }

    /// The layouts of KV pages of a prefill instance from which no engine can take any, and of one engine.
    pub fn strangers(&self) -> Option<(String, String)> {
        let engines = self.decode.members().iter().filter(|engine| !engine.computes_all());
        let first = engines.clone().next()?;
        let is_strange = |prefill: &&Member| !engines.clone().any(|engine| engine.takes_pages_of(prefill));
        let stranger = self.prefill.members().iter().find(is_strange)?;
        let (theirs, ours) = stranger.lease.pages().zip(first.lease.pages())?;
        Some((theirs.to_string(), ours.to_string()))
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests;
