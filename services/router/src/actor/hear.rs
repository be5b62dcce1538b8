//! What engines say of themselves: who they are, what they carry, what their caches hold.

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures_util::StreamExt;
use messages::{
    Pool, Role, codec,
    kv::KvEvents,
    lease::{Lease, State},
    load::Load,
    subject::{self, Kind},
};

use super::RouterActor;
use crate::{fleet::Fleet, settings::KvEventsMode};

impl RouterActor {
    /// Listens for as long as the process lives.
    ///
    /// # Errors
    /// If a subscription cannot be made.
    pub async fn hear(self: Arc<Self>) -> anyhow::Result<()> {
        let (bus, ns) = (&self.context.bus, self.context.bus.namespace());
        let mut loads = bus.listen(subject::all_loads(ns)).await?;
        let itself = self.clone();
        tokio::spawn(async move {
            while let Some(message) = loads.next().await {
                match (subject::parse(&message.subject), codec::decode(&message.payload)) {
                    (Some(Kind::Load(pool)), Ok(load)) => itself.heard_load(&pool, load),
                    (_, Err(error)) => tracing::warn!(%error, "load report ignored"),
                    _ => {}
                }
            }
        });
        if self.settings.kv_events == KvEventsMode::On {
            let mut events = bus.listen(subject::all_kv_events(ns)).await?;
            let itself = self.clone();
            tokio::spawn(async move {
                while let Some(message) = events.next().await {
                    match (subject::parse(&message.subject), codec::decode(&message.payload)) {
                        (Some(Kind::Kv(pool)), Ok(events)) => itself.heard_kv(&pool, events),
                        (_, Err(error)) => tracing::warn!(%error, "kv events ignored"),
                        _ => {}
                    }
                }
            });
        }
        tokio::spawn(self.follow_members());
        Ok(())
    }

    async fn follow_members(self: Arc<Self>) {
        let mut changed = self.context.directory.changed();
        loop {
            self.sync_members();
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn sync_members(self: &Arc<Self>) {
        let mut live: HashMap<(Role, Pool), Vec<Arc<Lease>>> = HashMap::new();
        for lease in self.context.directory.all() {
            if matches!(lease.role, Role::Decode | Role::Prefill) && lease.state == State::Ready {
                live.entry((lease.role, lease.pool.clone())).or_default().push(lease);
            }
        }
        live.keys().for_each(|(_, pool)| drop(self.deployment(pool)));
        for deployment in self.all_deployments() {
            let mut changed = false;
            let mut state = deployment.lock();
            for role in [Role::Decode, Role::Prefill] {
                let here = live.remove(&(role, deployment.pool.clone())).unwrap_or_default();
                changed |= state.fleet_mut(role).sync(&here);
            }
            state.suspects_engine_gone();
            drop(state);
            if changed {
                self.ask_for_caches(&deployment);
                deployment.stir();
            }
        }
    }

    fn heard_load(self: &Arc<Self>, pool: &Pool, mut load: Load) {
        let deployment = self.deployment(pool);
        let (engine, started) = (load.instance.clone(), std::mem::take(&mut load.started));
        {
            let mut state = deployment.lock();
            let now = Instant::now();
            state.suspect_heard(&load, &self.context.me.instance, now);
            if let Some(fleet) = state.fleet_of(&engine) {
                fleet.heard_load(load, &self.context.me.instance, now);
            }
        }
        self.check(&deployment, &engine, &started);
        self.ask_for_caches(&deployment);
        deployment.stir();
    }

    fn heard_kv(self: &Arc<Self>, pool: &Pool, events: KvEvents) {
        let deployment = self.deployment(pool);
        let instance = events.instance.clone();
        let (named, gap) = {
            let mut state = deployment.lock();
            let Some(fleet) = state.fleet_of(&instance) else { return };
            let is_lost =
                |fleet: &Fleet| fleet.member(&instance).is_some_and(|member| member.follower.is_lost());
            let was_lost = is_lost(fleet);
            let named = fleet.heard_kv(events);
            (named, !was_lost && is_lost(fleet))
        };
        metrics::counter!("stator_router_kv_events_total").increment(named as u64);
        if gap {
            metrics::counter!("stator_router_kv_gaps_total").increment(1);
            tracing::debug!(%instance, "kv events were lost");
        }
        self.ask_for_caches(&deployment);
    }
}
