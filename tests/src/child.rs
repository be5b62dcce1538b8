use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A process that dies with the test, its output kept in a file.
pub struct Child {
    inner: std::process::Child,
    pub log: PathBuf,
}

impl Child {
    /// Starts `command` with its output going to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Ok(Self { inner: command.spawn()?, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// Sends a signal, such as [`Signal::STOP`].
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.inner.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it at once and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }

    /// Its exit status, once it has ended within the time given.
    pub async fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let give_up = Instant::now() + time;
        loop {
            match self.inner.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() >= give_up => return None,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.inner.try_wait(), Ok(None))
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
