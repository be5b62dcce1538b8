use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{Child, NatsServer, eventually, free_port, http::Http};

/// The services that a cluster is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    Ingress,
    Tokenizer,
    Router,
    Prefill,
    Decode,
}

impl Service {
    pub const ALL: [Self; 5] = [Self::Ingress, Self::Tokenizer, Self::Router, Self::Prefill, Self::Decode];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Tokenizer => "tokenizer",
            Self::Router => "router",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// How a cluster is made up.
#[derive(Debug, Clone)]
pub struct Plan {
    pub model: PathBuf,
    pub ingresses: usize,
    pub tokenizers: usize,
    pub routers: usize,
    pub prefills: usize,
    pub decodes: usize,
    /// Three nats-servers instead of one.
    pub nats_cluster: bool,
    /// Further flags by service.
    pub flags: Vec<(Service, Vec<String>)>,
}

impl Plan {
    /// One of each, the model of the path given.
    pub fn of(model: &Path) -> Self {
        Self {
            model: model.to_owned(),
            ingresses: 1,
            tokenizers: 1,
            routers: 1,
            prefills: 0,
            decodes: 1,
            nats_cluster: false,
            flags: Vec::new(),
        }
    }

    fn count(&self, service: Service) -> usize {
        match service {
            Service::Ingress => self.ingresses,
            Service::Tokenizer => self.tokenizers,
            Service::Router => self.routers,
            Service::Prefill => self.prefills,
            Service::Decode => self.decodes,
        }
    }

    #[must_use]
    pub fn replicas(mut self, tokenizers: usize, routers: usize, decodes: usize) -> Self {
        (self.tokenizers, self.routers, self.decodes) = (tokenizers, routers, decodes);
        self
    }

    #[must_use]
    pub fn ingresses(mut self, ingresses: usize) -> Self {
        self.ingresses = ingresses;
        self
    }

    #[must_use]
    pub fn prefills(mut self, prefills: usize) -> Self {
        self.prefills = prefills;
        self
    }

    /// One instance of that service, whatever was planned.
    #[must_use]
    pub fn only_one(mut self, service: Service) -> Self {
        match service {
            Service::Ingress => self.ingresses = 1,
            Service::Tokenizer => self.tokenizers = 1,
            Service::Router => self.routers = 1,
            Service::Prefill => self.prefills = 1,
            Service::Decode => self.decodes = 1,
        }
        self
    }

    #[must_use]
    pub fn over_three_nats_servers(mut self) -> Self {
        self.nats_cluster = true;
        self
    }

    #[must_use]
    pub fn with(mut self, service: Service, flags: &[&str]) -> Self {
        self.flags.push((service, flags.iter().map(|flag| (*flag).to_owned()).collect()));
        self
    }
}

/// Real processes of every service over real nats-servers.
pub struct Cluster {
    /// One server, or three that are one cluster.
    pub nats: Vec<NatsServer>,
    /// Port of the first ingress.
    pub port: u16,
    plan: Plan,
    dir: tempfile::TempDir,
    children: Vec<(Service, Child)>,
    started: usize,
}

impl Cluster {
    /// Starts everything and waits until a chat would be answered.
    ///
    /// # Panics
    /// If the cluster does not become ready; says what each service logged.
    pub async fn start(plan: Plan) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let mut cluster = Self {
            nats: if plan.nats_cluster { NatsServer::start_three() } else { vec![NatsServer::start()] },
            port: free_port(),
            plan,
            dir,
            children: Vec::new(),
            started: 0,
        };
        for service in Service::ALL {
            for _ in 0..cluster.plan.count(service) {
                cluster.add(service);
            }
        }
        cluster.ready().await;
        cluster
    }

    /// Starts one more process of a service; returns its place among the children.
    pub fn add(&mut self, service: Service) -> usize {
        let urls: Vec<String> = self.nats.iter().map(NatsServer::url).collect();
        self.add_over(service, &urls.join(","), &[])
    }

    /// The same, with its own road to the nats-server and flags of its own.
    pub fn add_over(&mut self, service: Service, nats_url: &str, flags: &[String]) -> usize {
        let mut command = Command::new(stator());
        command.arg(service.name()).arg("--nats-url").arg(nats_url);
        match service {
            Service::Ingress => {
                let first = !self.children.iter_mut().any(|(of, c)| *of == service && c.is_running());
                let port = if first { self.port } else { free_port() };
                command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            }
            Service::Tokenizer | Service::Prefill | Service::Decode => {
                command.arg("--model-path").arg(&self.plan.model);
            }
            Service::Router => {}
        }
        for (_, flags) in self.plan.flags.iter().filter(|(of, _)| *of == service) {
            command.args(flags);
        }
        command.args(flags);
        if std::env::var_os("STATOR_TEST_LOG").is_some() {
            command.args(["--log-level", "debug"]);
        }
        self.started += 1;
        let log = self.dir.path().join(format!("{}-{}.log", self.started, service.name()));
        let child = Child::start(&mut command, &log).expect("the service starts");
        self.children.push((service, child));
        self.children.len() - 1
    }

    /// Waits until every process has said that it is ready, and ingress that it sees them all and could answer a chat.
    pub async fn ready(&mut self) {
        let expected = Service::ALL.map(|service| (service, self.running(service).len()));
        let http = self.http();
        let mut last = String::new();
        for _ in 0..1500 {
            if let Ok(reply) = http.get("/health").await {
                last = reply.body.clone();
                let instances = &reply.json()["cluster"]["instances"];
                let seen = |service: Service| instances[service.name()].as_u64().unwrap_or(0);
                let all_seen = expected.iter().all(|(service, count)| seen(*service) >= *count as u64);
                if reply.status == 200 && all_seen && self.all_say_ready() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the cluster did not become ready: {last}\n{}", self.logs());
    }

    fn all_say_ready(&mut self) -> bool {
        let mut running =
            self.children.iter_mut().filter_map(|(_, child)| child.is_running().then_some(child));
        running.all(|child| child.output().contains(": ready instance="))
    }

    /// The n-th running process of a service.
    pub fn child(&mut self, service: Service, n: usize) -> &mut Child {
        let place = self.running(service)[n];
        &mut self.children[place].1
    }

    /// The process at a place that [`Self::running`] named.
    pub fn child_at(&mut self, place: usize) -> &mut Child {
        &mut self.children[place].1
    }

    /// The n-th running decode engine that holds a run, once there is one.
    pub async fn engine_with_a_run(&mut self, within: Duration) -> usize {
        self.one_with_a_run(Service::Decode, within).await
    }

    /// The same of prefill or decode engines.
    pub async fn one_with_a_run(&mut self, role: Service, within: Duration) -> usize {
        eventually("an engine holds a run", within, async || {
            for (n, address) in self.admin_addresses(role.name()).iter().enumerate() {
                let Ok(figures) = Http::at(address).get("/metrics").await else { continue };
                if figure(&figures.body, "stator_engine_runs_live").is_some_and(|runs| runs > 0.0) {
                    return Some(n);
                }
            }
            None
        })
        .await
    }

    /// Places of the running processes of a service among the children.
    pub fn running(&mut self, service: Service) -> Vec<usize> {
        let all = self.children.iter_mut().enumerate();
        all.filter(|(_, (of, _))| *of == service)
            .filter_map(|(i, (_, c))| c.is_running().then_some(i))
            .collect()
    }

    pub fn http(&self) -> Http {
        Http::to(self.port)
    }

    /// Copies every log into a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_logs(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (_, child) in &self.children {
            std::fs::copy(&child.log, folder.join(child.log.file_name().unwrap_or_default()))?;
        }
        for (n, server) in self.nats.iter().enumerate() {
            std::fs::write(folder.join(format!("nats-{n}.log")), server.output())?;
        }
        Ok(())
    }

    /// Place of the nats-server that the first ingress last connected to: its frames come from there.
    pub fn nats_of_ingress(&mut self) -> usize {
        let log = self.child(Service::Ingress, 0).output();
        let port = log.rsplit_once("connected successfully server=").map(|(_, rest)| rest.split(' ').next());
        let port = port.flatten().and_then(|port| port.parse().ok());
        self.nats.iter().position(|server| Some(server.port()) == port).unwrap_or(0)
    }

    /// What every process has logged.
    pub fn logs(&self) -> String {
        let all = self.children.iter().map(|(service, child)| {
            let output = child.output();
            let tail: Vec<&str> = output.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!("--- {} {}\n{}\n", service.name(), child.pid(), tail.join("\n"))
        });
        all.collect()
    }

    /// Waits until no engine holds a run or a used block any more.
    pub async fn settled(&mut self, within: Duration) {
        let admins = self.admin_addresses("decode");
        for address in admins {
            let http = Http::at(&address);
            eventually("every block is free again", within, async || {
                let figures = http.get("/metrics").await.ok()?.body;
                let zero = |name: &str| figure(&figures, name).is_none_or(|value| value == 0.0);
                (zero("stator_engine_kv_blocks_used") && zero("stator_engine_runs_live")).then_some(())
            })
            .await;
        }
    }

    /// What the n-th running process of a service logged after `key=`.
    fn logged(&mut self, service: Service, n: usize, key: &str) -> Option<String> {
        let output = self.child(service, n).output();
        let (_, rest) = output.split_once(&format!("{key}="))?;
        rest.split_whitespace().next().map(str::to_owned)
    }

    /// Name of the n-th running process of a service.
    ///
    /// # Panics
    /// If it has not told it yet, as below.
    pub fn instance(&mut self, service: Service, n: usize) -> String {
        self.logged(service, n, "instance").expect("a process that started has logged its name")
    }

    /// Its admin listener.
    pub fn admin_address(&mut self, service: Service, n: usize) -> String {
        self.logged(service, n, "admin").expect("a process that started has logged its address")
    }

    /// Admin listeners of the running processes of a role, as their logs tell.
    pub fn admin_addresses(&mut self, role: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (service, child) in &mut self.children {
            if service.name() != role || !child.is_running() {
                continue;
            }
            let output = child.output();
            let address = output.split_once("admin=").map(|(_, rest)| rest.split_whitespace().next());
            found.extend(address.flatten().map(str::to_owned));
        }
        found
    }
}

/// A figure of a Prometheus page, summed over its labels.
pub fn figure(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (left, value) = line.rsplit_once(' ')?;
        (left.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok()).flatten()
    });
    values.reduce(|a, b| a + b)
}

/// The binary that ships: `STATOR_TEST_BINARY`, else the one built beside this test.
///
/// # Panics
/// If there is none.
pub fn stator() -> PathBuf {
    if let Some(path) = std::env::var_os("STATOR_TEST_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let built = test.ancestors().skip(1).take(2).map(|folder| folder.join("stator"));
    built.into_iter().find(|path| path.is_file()).expect("stator is built: cargo build --release -p stator")
}
