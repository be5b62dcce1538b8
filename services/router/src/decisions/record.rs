use std::{
    fs::OpenOptions,
    io::{BufWriter, Write},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;

use super::Decision;

/// Decisions that may wait to be written; more are left out and counted.
const WAITING: usize = 1024;
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Appends decisions to a file, one JSON object a line, on a thread of its own.
pub struct Recorder {
    waiting: Option<SyncSender<Decision>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("--record-decisions {} cannot be opened", path.display()))?;
        let (sender, waiting) = sync_channel(WAITING);
        let writer = std::thread::Builder::new()
            .name("decisions".to_owned())
            .spawn(move || write(BufWriter::new(file), &waiting))?;
        Ok(Self { waiting: Some(sender), writer: Some(writer) })
    }

    pub fn record(&self, decision: Decision) {
        let sent = self.waiting.as_ref().is_some_and(|waiting| waiting.try_send(decision).is_ok());
        if !sent {
            metrics::counter!("stator_router_decisions_unrecorded_total").increment(1);
        }
    }
}

impl Drop for Recorder {
    /// Waits until all is written.
    fn drop(&mut self) {
        self.waiting = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(mut file: impl Write, waiting: &Receiver<Decision>) {
    loop {
        let written = match waiting.recv_timeout(FLUSH_EVERY) {
            Ok(decision) => serde_json::to_writer(&mut file, &decision)
                .map_err(std::io::Error::from)
                .and_then(|()| file.write_all(b"\n")),
            Err(RecvTimeoutError::Timeout) => file.flush(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "decision not recorded");
        }
    }
}
