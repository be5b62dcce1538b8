//! The life of a local cluster: start, ready, keep, stop in order.

use std::{
    net::{TcpListener, ToSocketAddrs},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use actors::{
    bus::{Bus, BusOptions},
    directory::Directory,
};
use messages::lease::{Lease, State};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    board::Board,
    home::Home,
    job::{self, Event, Stopping},
    nats::Nats,
    plan::{self, Intent, Job, Stage},
};
use crate::http::Server;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a drain may take beyond the services' own grace.
const GRACE_MARGIN: Duration = Duration::from_secs(10);
/// Events of all processes that wait to be shown.
const EVENTS_AT_MOST: usize = 1024;

/// Runs the cluster to its end: 0 after a signal, 1 if a service could not be kept up.
pub async fn run(intent: Intent) -> anyhow::Result<ExitCode> {
    let models = plan::models(&intent.settings)?;
    let (host, port) = (intent.ingress.host.as_str(), intent.ingress.port);
    anyhow::ensure!(port != 0, "--port 0 would be another port at every start of the ingress; name one");
    port_is_free(host, port)?;
    let home = Home::make(port)?;
    let own_nats = match intent.process.nats_url.as_slice() {
        [] => Some(Nats::prepare(&intent.settings.nats_server, &home)?),
        _ => None,
    };
    let urls =
        own_nats.as_ref().map_or_else(|| intent.process.nats_url.clone(), |nats| vec![nats.url.clone()]);
    let services = plan::jobs(&intent, &models, &urls, usable_gpus)?;
    home.announce(&intent.process.namespace, &urls)?;

    let mut signals = Signals::new()?;
    let mut cluster = Cluster::new(own_nats.as_ref(), &services);
    let grace = Duration::from_secs(intent.process.drain_grace) + GRACE_MARGIN;
    let options = BusOptions {
        urls,
        namespace: intent.process.namespace.parse()?,
        credentials: intent.process.nats_credentials.clone(),
        name: "stator up".to_owned(),
    };
    let tls = intent.ingress.tls_cert.is_some();
    let url = format!("{}://{}:{port}", if tls { "https" } else { "http" }, reachable(host));
    let outcome = tokio::select! {
        outcome = cluster.live(own_nats, services, &options, &url, intent.process.lease_replicas) => outcome,
        () = signals.next() => Ok(ExitCode::SUCCESS),
    };
    cluster.stop(&mut signals, grace).await;
    outcome
}

fn usable_gpus() -> Vec<usize> {
    engine::usable_gpus(|why| eprintln!("a gpu is left aside: {why}")).collect()
}

fn port_is_free(host: &str, port: u16) -> anyhow::Result<()> {
    let address = (host, port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| anyhow::anyhow!("--host '{host}' is no address"))?;
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            anyhow::bail!("port {port} is in use; choose another with --port")
        }
        Err(error) => anyhow::bail!("cannot listen on {host}:{port}: {error}"),
    }
}

/// An address that stands for all of them is reached by loopback.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    }
}

/// SIGINT and SIGTERM alike.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// All processes and what is known of them.
struct Cluster {
    board: Board,
    /// The pid of each job's process that was seen ready.
    ready: Vec<watch::Sender<Option<u32>>>,
    stages: [JoinSet<()>; 3],
    stopping: watch::Sender<Stopping>,
    events: mpsc::Receiver<(usize, Event)>,
    report: job::Events,
    nats_line: Option<String>,
}

impl Cluster {
    fn new(nats: Option<&Nats>, services: &[Job]) -> Self {
        let names = nats.map(|_| "nats".to_owned()).into_iter();
        let names: Vec<String> = names.chain(services.iter().map(|job| job.name.clone())).collect();
        let (report, events) = mpsc::channel(EVENTS_AT_MOST);
        Self {
            ready: names.iter().map(|_| watch::channel(None).0).collect(),
            board: Board::new(names),
            stages: Default::default(),
            stopping: watch::channel(Stopping::NOT_YET).0,
            events,
            report,
            nats_line: nats.map(|nats| nats.address.to_string()),
        }
    }

    fn start(&mut self, number: usize, job: Job) {
        let stage = &mut self.stages[job.stage() as usize];
        let (stopping, ready) = (self.stopping.subscribe(), self.ready[number].subscribe());
        stage.spawn(job::keep(number, job, self.report.clone(), stopping, ready));
    }

    /// Starts everything and watches it. Returns only if the cluster cannot go on.
    async fn live(
        &mut self,
        nats: Option<Nats>,
        services: Vec<Job>,
        options: &BusOptions,
        url: &str,
        replicas: Option<usize>,
    ) -> anyhow::Result<ExitCode> {
        let offset = usize::from(nats.is_some());
        if let Some(nats) = nats {
            self.start(0, nats_job(&nats));
            if let Some(code) = self.until(Nats::listening(nats.address)).await? {
                return Ok(code);
            }
        }
        for (number, job) in services.into_iter().enumerate() {
            self.start(offset + number, job);
        }
        let mut bus = None;
        let connect = async {
            bus = Some(Bus::connect(options).await?);
            Ok(())
        };
        if let Some(code) = self.until(connect).await? {
            return Ok(code);
        }
        let Some(bus) = bus else { return Ok(ExitCode::FAILURE) };
        let directory = Directory::watch(bus, replicas);
        self.watch(&directory, url).await
    }

    /// Waits for `step` while processes are watched; `Some` if one of them ended the cluster.
    async fn until(
        &mut self,
        step: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Option<ExitCode>> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                done = &mut step => return done.map(|()| None),
                Some((number, event)) = self.events.recv() => {
                    if let Some(code) = self.note(number, event) {
                        return Ok(Some(code));
                    }
                }
            }
        }
    }

    async fn watch(&mut self, directory: &Directory, url: &str) -> anyhow::Result<ExitCode> {
        // Over TLS the leases alone must tell: this client does not speak it.
        let server = url.starts_with("http://").then(|| Server::new(url, None)).transpose()?;
        let mut changed = directory.changed();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut announced = false;
        loop {
            tokio::select! {
                Some((number, event)) = self.events.recv() => {
                    if let Some(code) = self.note(number, event) {
                        return Ok(code);
                    }
                }
                _ = changed.changed() => self.see(&directory.all(), url),
                _ = look.tick(), if !announced => {
                    self.see(&directory.all(), url);
                    if self.board.all_ready() && healthy(server.as_ref()).await {
                        announced = true;
                        self.board.settle();
                        let took = self.board.elapsed().as_secs_f64();
                        self.board.print(&format!("ready in {took:.1} s: {url}   (Ctrl-C drains and stops)"));
                    }
                }
            }
        }
    }

    /// Finds the processes that take work among the live leases.
    fn see(&mut self, leases: &[Arc<Lease>], url: &str) {
        for lease in leases.iter().filter(|lease| lease.state == State::Ready) {
            let mut detail = lease.instance.to_string();
            if let Some(card) = &lease.card {
                detail = format!("{detail}  {}", card.name);
            }
            if lease.role == messages::Role::Ingress {
                detail = format!("{detail}  {url}");
            }
            if let Some(admin) = &lease.admin {
                detail = format!("{detail}  admin http://{admin}");
            }
            if let Some(number) = self.board.ready(lease.pid, &detail) {
                self.ready[number].send_replace(Some(lease.pid));
            }
        }
    }

    /// `Some` if the cluster cannot go on without what ended.
    fn note(&mut self, number: usize, event: Event) -> Option<ExitCode> {
        let hopeless = matches!(event, Event::Ended { again: None, .. });
        let nats_pid = match (&event, number, &self.nats_line) {
            (Event::Started { pid }, 0, Some(line)) => Some((*pid, format!("nats://{line}"))),
            _ => None,
        };
        self.board.note(number, event);
        if let Some((pid, detail)) = nats_pid {
            self.board.ready(pid, &detail);
            self.ready[0].send_replace(Some(pid));
        }
        if hopeless {
            self.board.print("a service cannot be kept up: stopping the cluster");
        }
        hopeless.then_some(ExitCode::FAILURE)
    }

    /// Stops stage by stage; a further signal, or the end of the grace, means at once.
    async fn stop(&mut self, signals: &mut Signals, grace: Duration) {
        self.board.settle();
        if self.stages.iter().any(|stage| !stage.is_empty()) {
            self.board.print("draining; Ctrl-C again stops at once");
        }
        let mut deadline = Box::pin(tokio::time::sleep(grace));
        for stage in Stage::ALL {
            self.stopping.send_modify(|stopping| stopping.reached = Some(stage));
            loop {
                let tasks = &mut self.stages[stage as usize];
                tokio::select! {
                    joined = tasks.join_next() => if joined.is_none() { break },
                    Some((number, event)) = self.events.recv() => self.board.note(number, event),
                    () = signals.next() => self.hurry(),
                    () = &mut deadline, if !self.stopping.borrow().now => self.hurry(),
                }
            }
        }
        while let Ok((number, event)) = self.events.try_recv() {
            self.board.note(number, event);
        }
    }

    fn hurry(&mut self) {
        self.stopping.send_modify(|stopping| stopping.now = true);
    }
}

fn nats_job(nats: &Nats) -> Job {
    Job {
        name: "nats".to_owned(),
        role: None,
        program: nats.program.clone(),
        arguments: vec!["-c".into(), nats.config.clone().into()],
        environment: Vec::new(),
        // The password is in a file that only this user can read, and serves only this run.
        unshown: &[" [INF]", "Plaintext passwords detected"],
    }
}

/// Whether the ingress says that it can answer a chat.
async fn healthy(server: Option<&Server>) -> bool {
    let Some(server) = server else { return true };
    let ask = async {
        let mut connection = server.connect().await?;
        connection.send(hyper::Method::GET, "/health", &[], bytes::Bytes::new()).await
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(answer)) if answer.status() == 200)
}
