use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::Actor;
use messages::{InstanceId, lease::Lease};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Context, FLUSH_WITHIN, Me, Running, Spec};
use crate::{
    admin::Pages,
    bus::Bus,
    directory::Directory,
    lease,
    life::Life,
    root::{Ends, Root},
};

/// What the instances of a process share.
pub(super) struct Host {
    pub bus: Bus,
    pub directory: Directory,
    pub pages: Pages,
    pub metrics: PrometheusHandle,
    pub admin: SocketAddr,
    pub replicas: Option<usize>,
    pub grace: Duration,
}

/// One instance, from its first lease until that is given back.
pub(super) struct Instance {
    pub me: Me,
    pub life: Life,
    pub lease: watch::Sender<Lease>,
    ends: Ends,
    tasks: TaskTracker,
}

impl Instance {
    /// Draws an id and starts the root actor.
    pub fn new(spec: &Spec) -> Self {
        let me = Me { role: spec.role, pool: spec.pool.clone(), instance: InstanceId::draw(spec.role) };
        let (lease, ends) = (watch::channel(first_lease(&me, spec)).0, Ends::default());
        let root = Root::new(lease.clone(), ends.clone()).start();
        let (draining, drained) = (ends.draining.clone(), ends.drained.clone());
        let life = Life { root, draining, drained, farewells: TaskTracker::new() };
        Self { me, life, lease, ends, tasks: TaskTracker::new() }
    }

    pub fn context(&self, host: &Host) -> Context {
        Context {
            bus: host.bus.clone(),
            me: self.me.clone(),
            directory: host.directory.clone(),
            life: self.life.clone(),
            pages: host.pages.clone(),
            metrics: host.metrics.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// Cancelled when it is to stop at once.
    pub fn stopping(&self) -> CancellationToken {
        self.ends.stopping.clone()
    }

    /// Keeps the lease while `start` makes the service and that runs, until it has been drained.
    ///
    /// # Errors
    /// That of `start`.
    pub async fn live<R: Running>(
        self,
        host: &Host,
        start: impl Future<Output = anyhow::Result<R>>,
    ) -> anyhow::Result<()> {
        self.lease.send_modify(|lease| lease.admin = Some(host.admin.to_string()));
        let given_back = CancellationToken::new();
        let view = self.lease.subscribe();
        let keeper = tokio::spawn(lease::keep(host.bus.clone(), host.replicas, view, given_back.clone()));
        tracing::info!(instance = %self.me.instance, pool = %self.me.pool, admin = %host.admin, "started");
        let outcome = tokio::select! {
            running = start => match running {
                Ok(running) => {
                    self.ends.draining.cancelled().await;
                    self.wind_down(&running, host.grace).await;
                    Ok(())
                }
                Err(error) => Err(error),
            },
            () = self.ends.stopping.cancelled() => Ok(()),
        };
        self.tasks.close();
        let _ = tokio::time::timeout(FLUSH_WITHIN, self.tasks.wait()).await;
        host.bus.flush(FLUSH_WITHIN).await;
        self.ends.drained.cancel();
        self.life.farewells.close();
        let _ = tokio::time::timeout(FLUSH_WITHIN, self.life.farewells.wait()).await;
        given_back.cancel();
        let _ = tokio::time::timeout(FLUSH_WITHIN, keeper).await;
        outcome
    }

    async fn wind_down<R: Running>(&self, running: &R, grace: Duration) {
        tokio::select! {
            () = running.idle() => return,
            () = tokio::time::sleep(grace) => tracing::warn!(?grace, "drain grace is over, work is handed back"),
            () = self.ends.stopping.cancelled() => {}
        }
        running.abort();
    }
}

fn first_lease(me: &Me, spec: &Spec) -> Lease {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Lease {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned(),
        pid: std::process::id(),
        started_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        card: spec.card.clone(),
        ..Lease::new(me.role, me.pool.clone(), me.instance.clone())
    }
}
