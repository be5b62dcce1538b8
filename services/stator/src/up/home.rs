//! The folder of a running cluster: what its NATS server needs, and how tools find it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::process::{Pid, test_kill_process};

const CLUSTER_FILE: &str = "cluster.toml";
const PID_FILE: &str = "pid";

/// Removed when the cluster ends.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Makes the folder anew for the cluster whose ingress has this port.
    ///
    /// # Errors
    /// If a cluster with that port runs, or the folder cannot be made.
    pub fn make(port: u16) -> anyhow::Result<Self> {
        let path = clusters().join(port.to_string());
        if let Some(pid) = live_pid(&path) {
            anyhow::bail!("a cluster on port {port} runs already (pid {pid}); choose another --port");
        }
        remove(&path)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let home = Self { path };
        home.write(PID_FILE, &std::process::id().to_string())?;
        Ok(home)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that only this user can read.
    pub fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(path)
    }

    /// Tells tools how to reach the bus.
    pub fn announce(&self, namespace: &str, urls: &[String]) -> io::Result<()> {
        let urls: Vec<String> = urls.iter().map(|url| format!("{url:?}")).collect();
        let text = format!("[process]\nnamespace = {namespace:?}\nnats_url = [{}]\n", urls.join(", "));
        self.write(CLUSTER_FILE, &text).map(drop)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("warning: {} could not be removed: {error}", self.path.display());
        }
    }
}

/// The configuration of the local cluster that was started last and still runs.
pub fn running_cluster() -> Option<PathBuf> {
    let started = |folder: &PathBuf| -> Option<SystemTime> {
        live_pid(folder)?;
        fs::metadata(folder.join(CLUSTER_FILE)).ok()?.modified().ok()
    };
    let folders = fs::read_dir(clusters()).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = folders.filter_map(|folder| Some((started(&folder)?, folder))).max()?;
    Some(newest.1.join(CLUSTER_FILE))
}

/// Where stator keeps what it can get again.
pub fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/stator"));
    std::env::var_os("STATOR_CACHE").map(PathBuf::from).or_else(home).unwrap_or_else(|| "/tmp/stator".into())
}

fn clusters() -> PathBuf {
    cache().join("up")
}

fn live_pid(folder: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(folder.join(PID_FILE)).ok()?.trim().parse().ok()?;
    test_kill_process(Pid::from_raw(pid)?).ok()?;
    Some(pid)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
