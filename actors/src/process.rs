//! The life of a process, from its settings to its exit code.

mod end;
mod instance;

use std::{
    future::Future,
    mem::ManuallyDrop,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use messages::{
    InstanceId, Namespace, Pool, Role,
    lease::{Lease, ModelCard},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin,
    bus::{Bus, BusOptions},
    directory::{Departed, Directory},
    frames::HEARTBEAT,
    lease,
    life::Life,
    telemetry::{self, LogFormat},
};
pub use end::{PANICKED, confined, end};
use instance::{Host, Instance};

/// How long the last messages may take to leave; of a process that was told to stop at once, everything.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

crate::settings! {
    /// What every service needs.
    pub struct ProcessSettings, ProcessFlags in "process" {
        /// NATS servers, nats://[user:password@]host:port, comma-separated or repeated; default nats://127.0.0.1:4222.
        list nats_url: String;
        /// NATS credentials file.
        optional nats_credentials: PathBuf;
        /// First token of every subject; separates clusters on one NATS.
        value namespace: String = "stator".to_owned();
        /// Replicas of the lease bucket; default: 3 on a NATS cluster, else 1.
        optional lease_replicas: usize;
        /// Address of the admin listener (/metrics, /admin); port 0 picks one.
        value admin_bind: String = "127.0.0.1:0".to_owned();
        /// Bearer key of /admin.
        optional admin_key: String;
        /// Log format, text or json.
        value log_format: LogFormat = LogFormat::Text;
        /// Log filter, such as info or info,router=debug.
        value log_level: String = "info".to_owned();
        /// Seconds that a drain waits for work to end.
        value drain_grace: u64 = 30;
        /// Threads of the network runtime.
        value io_threads: usize = 2;
        /// Secret that keys KV block hashes; the same in the whole cluster.
        value cluster_key: String = "stator".to_owned();
    }
}

/// What a process is, before it has an identity.
#[derive(Debug, Clone)]
pub struct Spec {
    pub role: Role,
    pub pool: Pool,
    pub card: Option<ModelCard>,
}

/// This instance.
#[derive(Debug, Clone)]
pub struct Me {
    pub role: Role,
    pub pool: Pool,
    pub instance: InstanceId,
}

/// What a service is given to live with.
#[derive(Clone)]
pub struct Context {
    pub bus: Bus,
    pub me: Me,
    pub directory: Directory,
    pub life: Life,
    /// What the admin listener shows of the service.
    pub pages: admin::Pages,
    /// Renders this process's metrics.
    pub metrics: metrics_exporter_prometheus::PrometheusHandle,
    /// Tasks that a stop waits for.
    pub tasks: TaskTracker,
}

impl Context {
    /// Keeps slow duties: `beat` at each heartbeat, `departed` whenever an instance is gone. Ingresses it is told of more
    /// than once: work of theirs may come later than the word that they are gone.
    pub async fn keep(&self, beat: impl Fn(), departed: impl Fn(&Arc<Lease>)) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut departures = self.directory.departures();
        let mut ingresses = Departed::default();
        let is_back = |lease: &Lease| self.directory.lease(&lease.instance).is_some();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    beat();
                    ingresses.due(is_back, Instant::now()).iter().for_each(&departed);
                }
                Ok(lease) = departures.recv() => {
                    departed(&lease);
                    if lease.role == Role::Ingress {
                        ingresses.note(lease, Instant::now());
                    }
                }
            }
        }
    }
}

/// A service that runs.
pub trait Running {
    /// Returns once no work is left; called when draining has begun.
    fn idle(&self) -> impl Future<Output = ()> + Send;

    /// Ends what is left, retryably, when the grace is over.
    fn abort(&self) {}
}

/// Runs a process of a service to its end. `start` makes the service; it calls [`Life::ready`] once it takes work.
pub fn run<F, Fut, R>(spec: Spec, settings: ProcessSettings, start: F) -> ExitCode
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<R>>,
    R: Running,
{
    let mut start = Some(start);
    run_many(spec, 1, settings, move |context| start.take().expect("one instance starts once")(context))
}

/// As [`run`], but the process is `count` instances, each with an id, a lease and a life of its own. They share the
/// connections and the admin listener. The process ends with the last of them, or when one cannot start.
pub fn run_many<F, Fut, R>(spec: Spec, count: u32, settings: ProcessSettings, start: F) -> ExitCode
where
    F: FnMut(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<R>>,
    R: Running,
{
    if let Err(error) = telemetry::start_logs(settings.log_format, &settings.log_level) {
        eprintln!("error: log level: {error}");
        return ExitCode::from(2);
    }
    end::end_on_panic();
    match on_runtime(settings.io_threads, live(spec, count, settings, start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the process's one future. The runtime is never dropped: that would wait for threads that block, such as one that
/// pushes pages to an engine that takes none, when everything is said and the process may end.
fn on_runtime<T>(threads: usize, future: impl Future<Output = T>) -> T {
    let system = ManuallyDrop::new(actix_rt::System::with_tokio_rt(move || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads.max(1)).enable_all().build().expect("the runtime needs threads")
    }));
    system.block_on(future)
}

async fn live<F, Fut, R>(
    spec: Spec,
    count: u32,
    settings: ProcessSettings,
    mut start: F,
) -> anyhow::Result<()>
where
    F: FnMut(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<R>>,
    R: Running,
{
    let metrics = telemetry::start_metrics()?;
    actix_rt::spawn(telemetry::keep_metrics(metrics.clone()));
    let instances: Vec<Instance> = (0..count.max(1)).map(|_| Instance::new(&spec)).collect();
    let bus = Bus::connect(&bus_options(&settings, &instances[0].me)?).await?;
    let replicas = settings.lease_replicas;
    lease::open(&bus, replicas).await?;

    let bind: SocketAddr = settings
        .admin_bind
        .parse()
        .map_err(|_| anyhow::anyhow!("--admin-bind '{}' is no address:port", settings.admin_bind))?;
    let pages = admin::Pages::default();
    let lives: Vec<Life> = instances.iter().map(|instance| instance.life.clone()).collect();
    watch_signals(lives.clone())?;
    let key = settings.admin_key;
    let (server, admin) = admin::listen(bind, key, lives.into(), pages.clone(), metrics.clone())?;
    let listener = server.handle();
    actix_rt::spawn(server);
    let directory = Directory::watch(bus.clone(), replicas);
    directory.holds_own(&instances[0].lease.borrow());

    let grace = Duration::from_secs(settings.drain_grace);
    let host = Host { bus: bus.clone(), directory, pages, metrics, admin, replicas, grace };
    let stops: Vec<CancellationToken> = instances.iter().map(Instance::stopping).collect();
    let lives = instances.into_iter().map(|instance| {
        let running = start(instance.context(&host));
        instance.live(&host, running)
    });
    let ended = async {
        let outcome = try_join_all(lives).await;
        // Whoever waits for the end is told before it comes.
        let _ = tokio::time::timeout(FLUSH_WITHIN, listener.stop(true)).await;
        bus.flush(FLUSH_WITHIN).await;
        tracing::info!("stopped");
        outcome.map(drop)
    };
    tokio::select! {
        outcome = ended => outcome,
        () = overdue(&stops) => {
            tracing::warn!("stopped before all was said");
            Ok(())
        }
    }
}

/// Returns once every instance was told to stop at once and has had its time.
async fn overdue(stops: &[CancellationToken]) {
    for stop in stops {
        stop.cancelled().await;
    }
    tokio::time::sleep(FLUSH_WITHIN).await;
}

fn bus_options(settings: &ProcessSettings, me: &Me) -> anyhow::Result<BusOptions> {
    let namespace: Namespace =
        settings.namespace.parse().map_err(|error| anyhow::anyhow!("--namespace: {error}"))?;
    let urls = match settings.nats_url.as_slice() {
        [] => vec!["nats://127.0.0.1:4222".to_owned()],
        urls => urls.to_vec(),
    };
    let credentials = settings.nats_credentials.clone();
    Ok(BusOptions { urls, namespace, credentials, name: format!("stator {}", me.instance) })
}

/// SIGTERM or SIGINT drains; the second stops at once.
fn watch_signals(lives: Vec<Life>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            lives.iter().for_each(|life| life.drain(false));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_blocks_does_not_hold_up_the_end() {
        let began = Instant::now();
        on_runtime(1, async {
            let (blocks, blocking) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let _ = blocks.send(());
                std::thread::sleep(Duration::from_secs(60));
            });
            blocking.await.unwrap();
        });
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
