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
use serde::de::DeserializeOwned;

use super::RouterActor;
use crate::{fleet::Fleet, settings::KvEventsMode};

impl RouterActor {
    /// Listens for as long as the process lives.
    ///
    /// # Errors
    /// If a subscription cannot be made.
    pub async fn hear(self: Arc<Self>) -> anyhow::Result<()> {
        let ns = self.context.bus.namespace();
        self.hear_all(subject::all_loads(ns), Self::heard_load).await?;
        if self.settings.kv_events == KvEventsMode::On {
            self.hear_all(subject::all_kv_events(ns), Self::heard_kv).await?;
        }
        tokio::spawn(self.follow_members());
        Ok(())
    }

    /// Takes in what engines of any pool say on a subject.
    async fn hear_all<T: DeserializeOwned + Send + 'static>(
        self: &Arc<Self>,
        subject: String,
        heard: fn(&Arc<Self>, &Pool, T),
    ) -> anyhow::Result<()> {
        let mut messages = self.context.bus.listen(subject).await?;
        let itself = self.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                match (subject::parse(&message.subject), codec::decode(&message.payload)) {
                    (Some(Kind::Load(pool) | Kind::Kv(pool)), Ok(body)) => heard(&itself, &pool, body),
                    (_, Err(error)) => tracing::warn!(subject = %message.subject, %error, "ignored"),
                    _ => {}
                }
            }
        });
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
        live.keys().for_each(|(_, pool)| drop(self.deployments.of(pool)));
        for deployment in self.deployments.all() {
            let mut changed = false;
            let mut state = deployment.lock();
            for role in [Role::Decode, Role::Prefill] {
                let here = live.remove(&(role, deployment.pool.clone())).unwrap_or_default();
                changed |= state.fleet_mut(role).sync(&here);
            }
            state.poison_gone();
            let strangers = if changed { state.strangers() } else { None };
            drop(state);
            if let Some((prefill, decode)) = strangers {
                tracing::warn!(pool = %deployment.pool, prefill, decode, "no engine takes pages of a prefill instance");
            }
            if changed {
                self.ask_for_all_caches(&deployment);
                deployment.stir();
            }
        }
        self.deployments.forget_dead();
    }

    fn heard_load(self: &Arc<Self>, pool: &Pool, mut load: Load) {
        let deployment = self.deployments.of(pool);
        let (engine, started) = (load.instance.clone(), std::mem::take(&mut load.started));
        {
            let mut state = deployment.lock();
            let now = Instant::now();
            state.poison_heard(&load, &self.context.me.instance, now);
            if let Some(fleet) = state.fleet_of(&engine) {
                fleet.heard_load(load, &self.context.me.instance, now);
            }
        }
        self.check(&deployment, &engine, &started);
        self.ask_for_cache(&deployment, &engine);
        deployment.stir();
    }

    fn heard_kv(self: &Arc<Self>, pool: &Pool, events: KvEvents) {
        let deployment = self.deployments.of(pool);
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
        self.ask_for_cache(&deployment, &instance);
    }
}
