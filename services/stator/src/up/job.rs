//! Keeps one process alive until it is to stop.

use std::{
    os::unix::process::ExitStatusExt,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
};

use super::{
    backoff::{Backoff, Verdict, explain},
    plan::{Job, Stage},
    progress::{self, Progress},
};

/// From "stop now" to SIGKILL.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A log line is cut here.
const LINE_AT_MOST: usize = 16 * 1024;
/// The rest of a dead process's log is awaited this long; a grandchild may hold the pipe open.
const LOG_TAIL: Duration = Duration::from_millis(200);

/// What happens to a process.
#[derive(Debug)]
pub enum Event {
    Started {
        pid: u32,
    },
    Progress(Progress),
    Log(String),
    /// It ended by itself; `again`: when it will be started again.
    Ended {
        why: String,
        again: Option<Duration>,
    },
    /// It ended as it was told to.
    Stopped {
        why: Option<String>,
    },
}

pub type Events = mpsc::Sender<(usize, Event)>;

/// How far the cluster's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopping {
    /// These and those before them stop.
    pub reached: Option<Stage>,
    /// No waiting for work.
    pub now: bool,
}

impl Stopping {
    pub const NOT_YET: Self = Self { reached: None, now: false };

    fn concerns(&self, stage: Stage) -> bool {
        self.reached.is_some_and(|reached| stage <= reached)
    }
}

/// Runs the job's process, again and again, until `stopping` concerns it or there is no hope.
pub async fn keep(
    number: usize,
    job: Job,
    events: Events,
    mut stopping: watch::Receiver<Stopping>,
    mut ready: watch::Receiver<Option<u32>>,
) {
    let stage = job.stage();
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let mut child = match spawn(&job) {
            Ok(child) => child,
            Err(error) => {
                let why = format!("could not be started: {error}");
                let _ = events.send((number, Event::Ended { why, again: None })).await;
                return;
            }
        };
        let pid = child.id().unwrap_or_default();
        let _ = events.send((number, Event::Started { pid })).await;
        let logs = [
            forward(number, child.stdout.take(), job.unshown, &events),
            forward(number, child.stderr.take(), job.unshown, &events),
        ];
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = reached(&mut stopping, |stopping| stopping.concerns(stage)) => None,
        };
        let Some(status) = ended else {
            let why = stop(&mut child, &mut stopping).await;
            finish(logs).await;
            let _ = events.send((number, Event::Stopped { why })).await;
            return;
        };
        finish(logs).await;
        if *ready.borrow_and_update() == Some(pid) {
            backoff.became_ready();
        }
        let (why, again) = match status {
            Ok(status) => match backoff.judge(status, began.elapsed()) {
                Verdict::Again { after } => (explain(status), Some(after)),
                Verdict::Hopeless => (explain(status), None),
            },
            Err(error) => (format!("cannot be waited for: {error}"), None),
        };
        let _ = events.send((number, Event::Ended { why, again })).await;
        let Some(after) = again else { return };
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            () = reached(&mut stopping, |stopping| stopping.concerns(stage)) => {
                let _ = events.send((number, Event::Stopped { why: None })).await;
                return;
            }
        }
    }
}

/// Starts the program through `with-parent`, in a process group of its own: a terminal's Ctrl-C is for `stator up`,
/// which then stops everything in order.
fn spawn(job: &Job) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["with-parent", "--parent"])
        .arg(std::process::id().to_string())
        .arg(&job.program)
        .args(&job.arguments)
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// SIGTERM, a second one when it is urgent, SIGKILL at last. Says what went wrong, if anything did.
async fn stop(child: &mut Child, stopping: &mut watch::Receiver<Stopping>) -> Option<String> {
    terminate(child);
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = reached(stopping, |stopping| stopping.now) => None,
    };
    let status = match ended {
        Some(status) => status,
        None => {
            terminate(child);
            match tokio::time::timeout(LAST_WORDS, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    let _ = child.kill().await;
                    return Some("did not stop and was killed".to_owned());
                }
            }
        }
    };
    match status {
        Ok(status) if status.success() => None,
        // It had not got so far as to listen to signals.
        Ok(status) if status.signal() == Some(Signal::TERM.as_raw()) => None,
        Ok(status) => Some(explain(status)),
        Err(error) => Some(error.to_string()),
    }
}

/// Returns once `stopping` has come so far, or the cluster itself is gone.
async fn reached(stopping: &mut watch::Receiver<Stopping>, far: impl FnMut(&Stopping) -> bool) {
    let _ = stopping.wait_for(far).await;
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself; its status will tell.
        let _ = kill_process(pid, Signal::TERM);
    }
}

type Forwarding = tokio::task::JoinHandle<()>;

fn forward(
    number: usize,
    stream: Option<impl AsyncRead + Unpin + Send + 'static>,
    unshown: &'static [&'static str],
    events: &Events,
) -> Forwarding {
    let events = events.clone();
    tokio::spawn(async move {
        let Some(stream) = stream else { return };
        let mut reader = BufReader::with_capacity(LINE_AT_MOST, stream);
        let mut line = Vec::new();
        while let Ok(true) = read_line(&mut reader, &mut line).await {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if unshown.iter().any(|mark| text.contains(mark)) {
                continue;
            }
            let event = progress::parse(&text).map_or(Event::Log(text), Event::Progress);
            if events.send((number, event)).await.is_err() {
                break;
            }
        }
    })
}

/// Reads to the next line end; a longer line than the bound comes in parts. False at the end.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if end.is_some() || line.len() >= LINE_AT_MOST {
            return Ok(true);
        }
    }
}

async fn finish(logs: [Forwarding; 2]) {
    for log in logs {
        let _ = tokio::time::timeout(LOG_TAIL, log).await;
    }
}
