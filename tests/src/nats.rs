use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{OnceLock, mpsc},
    time::Duration,
};

use crate::{Child, Signal, free_port};

const PLAIN: &str = "max_payload: 8MB\njetstream {}\n";
/// User and password of the clustered servers.
const LOGIN: [&str; 2] = ["stator", "secret"];

/// A nats-server of the test's own on loopback, with JetStream.
pub struct NatsServer {
    child: Option<Child>,
    port: u16,
    config: String,
    /// What the configuration takes from the environment.
    environment: Vec<(String, String)>,
    login: Option<[&'static str; 2]>,
    /// The kernel ends it with the thread that started it.
    bound: bool,
    dir: tempfile::TempDir,
}

impl NatsServer {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Panics
    /// If there is no nats-server to be had.
    pub fn start() -> Self {
        Self::start_with(PLAIN)
    }

    /// Starts a server with this configuration beside its address and folder.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(config: &str) -> Self {
        let mut server = Self::configured(config);
        server.resume();
        server
    }

    fn configured(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let store = format!("jetstream {{ store_dir: {:?} }}", dir.path().join("store"));
        let port = free_port();
        let config = format!("listen: 127.0.0.1:{port}\n{}", config.replace("jetstream {}", &store));
        Self::new(port, config, dir)
    }

    fn new(port: u16, config: String, dir: tempfile::TempDir) -> Self {
        Self { child: None, port, config, environment: Vec::new(), login: None, bound: false, dir }
    }

    /// One server for all tests of this process, which is never dropped; it ends with the process.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn of_this_process() -> &'static Self {
        static SERVER: OnceLock<NatsServer> = OnceLock::new();
        SERVER.get_or_init(|| {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                let mut server = Self::configured(PLAIN);
                server.bound = true;
                server.resume();
                let _ = tell.send(server);
                loop {
                    std::thread::park();
                }
            });
            told.recv().expect("the server starts")
        })
    }

    /// Starts three servers that are one cluster, configured by `docker/nats-cluster.conf`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_three() -> Vec<Self> {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/nats-cluster.conf");
        let config = std::fs::read_to_string(config).expect("the configuration can be read");
        let ports: [(u16, u16); 3] = std::array::from_fn(|_| (free_port(), free_port()));
        let [user, password] = LOGIN;
        let routes = ports.map(|(_, cluster)| format!("\"nats://{user}:{password}@127.0.0.1:{cluster}\""));
        let mut servers = Vec::new();
        for (n, (port, cluster)) in ports.into_iter().enumerate() {
            let dir = tempfile::tempdir().expect("a temporary folder can be made");
            let environment = [
                ("NAME", format!("nats-{n}")),
                ("HOST", "127.0.0.1".to_owned()),
                ("PORT", port.to_string()),
                ("CLUSTER_PORT", cluster.to_string()),
                ("ROUTES", format!("[{}]", routes.join(", "))),
                ("STORE", format!("{:?}", dir.path().join("store"))),
                ("PASSWORD", password.to_owned()),
            ];
            let environment = environment.map(|(key, value)| (format!("STATOR_NATS_{key}"), value)).into();
            let mut server = Self::new(port, config.clone(), dir);
            (server.environment, server.login) = (environment, Some(LOGIN));
            server.resume();
            servers.push(server);
        }
        let led = || servers.iter().any(|server| server.output().contains("cluster metadata leader"));
        for _ in 0..1000 {
            if led() {
                return servers;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the servers found no leader:\n{}", servers[0].output());
    }

    /// Starts it (again) on the same port.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn resume(&mut self) {
        let config = self.dir.path().join("nats.conf");
        std::fs::write(&config, &self.config).expect("the configuration can be written");
        let mut command = if self.bound { Command::new("setpriv") } else { Command::new(binary()) };
        if self.bound {
            command.args(["--pdeathsig", "KILL"]).arg(binary());
        }
        command.arg("-c").arg(&config).envs(self.environment.iter().cloned());
        let child =
            Child::start(&mut command, &self.dir.path().join("nats.log")).expect("nats-server starts");
        let address = ("127.0.0.1", self.port);
        for _ in 0..500 {
            if std::net::TcpStream::connect(address).is_ok() {
                self.child = Some(child);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nats-server did not come up:\n{}", child.output());
    }

    /// Kills it; everything it held in memory is gone.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends it a signal, such as [`Signal::STOP`].
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        self.child.as_ref().expect("the server runs").signal(signal);
    }

    /// What it has logged.
    pub fn output(&self) -> String {
        self.child.as_ref().map(Child::output).unwrap_or_default()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        match self.login {
            Some([user, password]) => format!("nats://{user}:{password}@{}", self.address()),
            None => format!("nats://{}", self.address()),
        }
    }
}

/// The nats-server to use: `STATOR_TEST_NATS`, else what `scripts/nats-server` finds or installs.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("STATOR_TEST_NATS") {
            return path.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/nats-server");
        let output = Command::new(&script).output().expect("scripts/nats-server runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let path = text.lines().last().map(str::trim).unwrap_or_default();
        assert!(output.status.success() && !path.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(path)
    })
}
