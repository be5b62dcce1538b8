//! The NATS server of a local cluster.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::net::TcpStream;

use super::home::Home;

/// Lease expiry must be an event: limit markers came with this version.
const LEAST_VERSION: (u32, u32) = (2, 11);
const USER: &str = "stator";
const START_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A server that is configured but not started.
pub struct Nats {
    pub program: PathBuf,
    pub config: PathBuf,
    pub address: SocketAddr,
    /// With the credential.
    pub url: String,
}

impl Nats {
    /// Checks the program and writes a configuration: loopback, a free port, a credential drawn for this run.
    ///
    /// # Errors
    /// If there is no such program or it is too old; the message says what to do.
    pub fn prepare(program: &Path, home: &Home) -> anyhow::Result<Self> {
        let program = check(program)?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let password = format!("{:032x}", rand::random::<u128>());
        let config = home.write("nats.conf", &config(address, &password, &home.path().join("jetstream")))?;
        Ok(Self { program, config, address, url: format!("nats://{USER}:{password}@{address}") })
    }

    /// Waits until the server listens.
    ///
    /// # Errors
    /// If it does not within 10 seconds.
    pub async fn listening(address: SocketAddr) -> anyhow::Result<()> {
        let knock = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(START_WITHIN, knock)
            .await
            .with_context(|| format!("nats-server does not listen on {address} after {START_WITHIN:?}"))
    }
}

fn check(program: &Path) -> anyhow::Result<PathBuf> {
    let output = match Command::new(program).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "there is no '{}': install nats-server {}.{} or newer (scripts/nats-server fetches one and prints \
             its path for --nats-server), or name a running one with --nats-url",
            program.display(),
            LEAST_VERSION.0,
            LEAST_VERSION.1
        ),
        Err(error) => bail!("{}: {error}", program.display()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(found) if found >= LEAST_VERSION => Ok(program.to_owned()),
        Some((major, minor)) => bail!(
            "{} is version {major}.{minor}, stator needs {}.{} or newer (scripts/nats-server fetches one and \
             prints its path for --nats-server)",
            program.display(),
            LEAST_VERSION.0,
            LEAST_VERSION.1
        ),
        None => bail!("{} --version says '{}', which is no nats-server", program.display(), text.trim()),
    }
}

/// Reads `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().rsplit_once('v')?.1.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn config(address: SocketAddr, password: &str, store: &Path) -> String {
    format!(
        "listen: \"{address}\"\n\
         max_payload: 8MB\n\
         jetstream {{ store_dir: {:?}, max_memory_store: 256MB, max_file_store: 1GB }}\n\
         authorization {{ user: {USER:?}, password: {password:?} }}\n",
        store.display().to_string()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        assert_eq!(version("nats-server: v2.9.10\n"), Some((2, 9)));
        assert!(version("nats-server: v2.15.1").unwrap() >= LEAST_VERSION);
        assert!(version("nats-server: v2.9.10").unwrap() < LEAST_VERSION);
        assert_eq!(version("bash 5.2"), None);
    }

    #[test]
    fn a_missing_server_says_what_to_do() {
        let error = check(Path::new("no-such-nats-server")).unwrap_err().to_string();
        assert!(error.contains("--nats-url") && error.contains("2.11"), "{error}");
    }
}
