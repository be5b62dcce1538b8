use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use anyhow::Context;

use super::Decision;

/// Decisions that may wait to be written; more are left out and counted.
const WAITING: usize = 1024;
/// Bytes from which on lines are written without waiting for more.
const BATCH: usize = 64 << 10;

/// Appends decisions to a file, one JSON object a line, on a thread of its own. Several routers may share a file: each
/// write appends whole lines.
pub struct Recorder {
    waiting: Option<SyncSender<Decision>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = append(path)
            .with_context(|| format!("--record-decisions {} cannot be opened", path.display()))?;
        let (sender, waiting) = sync_channel(WAITING);
        let writer =
            std::thread::Builder::new().name("decisions".to_owned()).spawn(move || write(file, &waiting))?;
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

fn append(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        // Somebody died over this line.
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Writes what waits, all of it at once.
fn write(mut file: impl Write, waiting: &Receiver<Decision>) {
    let mut lines = Vec::new();
    while let Ok(first) = waiting.recv() {
        lines.clear();
        let mut next = Some(first);
        while let Some(decision) = next {
            let whole = lines.len();
            if let Err(error) = serde_json::to_writer(&mut lines, &decision) {
                tracing::warn!(%error, "decision not recorded");
                lines.truncate(whole);
            } else {
                lines.push(b'\n');
            }
            next = if lines.len() < BATCH { waiting.try_recv().ok() } else { None };
        }
        if let Err(error) = file.write_all(&lines) {
            tracing::warn!(%error, "decisions not recorded");
        }
    }
}
