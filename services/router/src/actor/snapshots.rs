//! Asking engines for what their caches hold.

use std::{sync::Arc, time::Duration};

use messages::{InstanceId, control::Control, kv::KvSnapshot, lease::Lease, subject};

use super::RouterActor;
use crate::deployment::Deployment;

/// Snapshots on their way at once: a router that starts beside a thousand engines takes them in turn.
pub(super) const AT_ONCE: usize = 16;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Pauses between questions to an engine that does not answer, or whose answer was not enough.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl RouterActor {
    /// Asks an engine for its cache if the index has lost track of it.
    pub(super) fn ask_for_cache(self: &Arc<Self>, deployment: &Arc<Deployment>, engine: &InstanceId) {
        let asked = deployment.lock().fleet_of(engine).and_then(|fleet| fleet.ask_for(engine));
        asked.into_iter().for_each(|lease| self.begin_to_ask(deployment, lease));
    }

    /// [`Self::ask_for_cache`] for every engine.
    pub(super) fn ask_for_all_caches(self: &Arc<Self>, deployment: &Arc<Deployment>) {
        let asked = deployment.lock().fleets_mut().map(|fleet| fleet.ask_for_all());
        asked.into_iter().flatten().for_each(|lease| self.begin_to_ask(deployment, lease));
    }

    fn begin_to_ask(self: &Arc<Self>, deployment: &Arc<Deployment>, lease: Arc<Lease>) {
        self.runtime.spawn(self.clone().follow_up(deployment.clone(), lease));
    }

    /// Asks until the index is whole again or the engine is gone.
    async fn follow_up(self: Arc<Self>, deployment: Arc<Deployment>, lease: Arc<Lease>) {
        let mut pause = FIRST_PAUSE;
        while !self.resynced(&deployment, &lease).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn resynced(&self, deployment: &Deployment, lease: &Lease) -> bool {
        let Ok(_turn) = self.snapshots.acquire().await else { return true };
        let subject =
            subject::instance_control(self.context.bus.namespace(), lease.role, &lease.pool, &lease.instance);
        let answer =
            self.context.bus.ask::<_, KvSnapshot>(subject, None, &Control::KvSnapshot {}, ANSWER_WITHIN);
        let answer = answer.await;
        let outcome = if answer.is_ok() { "taken" } else { "failed" };
        metrics::counter!("stator_router_kv_snapshots_total", "outcome" => outcome).increment(1);
        let done = {
            let mut state = deployment.lock();
            let fleet = state.fleet_mut(lease.role);
            match answer {
                Ok(snapshot) => fleet.take_snapshot(&snapshot),
                Err(error) => tracing::debug!(instance = %lease.instance, %error, "no snapshot of its cache"),
            }
            fleet.member_mut(&lease.instance).is_none_or(|member| {
                member.asked = member.follower.is_lost();
                !member.asked
            })
        };
        self.gauge_deployments();
        done
    }
}
