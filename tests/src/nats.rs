use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use crate::{Child, free_port};

/// A nats-server of the test's own on loopback, with JetStream.
pub struct NatsServer {
    child: Option<Child>,
    port: u16,
    config: String,
    dir: tempfile::TempDir,
}

impl NatsServer {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Panics
    /// If there is no nats-server to be had.
    pub fn start() -> Self {
        Self::start_with("max_payload: 8MB\njetstream {}\n")
    }

    /// Starts a server with this configuration beside its address and folder.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let store = format!("jetstream {{ store_dir: {:?} }}", dir.path().join("store"));
        let config = config.replace("jetstream {}", &store);
        let mut server = Self { child: None, port: free_port(), config, dir };
        server.resume();
        server
    }

    /// Starts it (again) on the same port.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn resume(&mut self) {
        let config = self.dir.path().join("nats.conf");
        let text = format!("listen: 127.0.0.1:{}\n{}", self.port, self.config);
        std::fs::write(&config, text).expect("the configuration can be written");
        let mut command = Command::new(binary());
        command.arg("-c").arg(&config);
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

    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("the server runs")
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
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
