//! What the user sees: one line a service, bars while weights load, logs with a prefix.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{job::Event, progress::Progress};

const TICK: Duration = Duration::from_millis(100);
/// Bars on a terminal, lines elsewhere; a line for progress no more often than this.
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(5);

/// The state of a service as the board shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Ready { detail: String },
    Waiting,
    Stopped,
}

struct Row {
    name: String,
    state: State,
    pid: u32,
    bar: Option<ProgressBar>,
    last_progress: Option<Instant>,
}

/// The lines of all services. Bars stand below the logs until everything is ready, then the lines are printed for good.
pub struct Board {
    rows: Vec<Row>,
    bars: Option<MultiProgress>,
    width: usize,
    began: Instant,
}

impl Board {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        let rows: Vec<Row> = names
            .into_iter()
            .map(|name| {
                let bar = bars.as_ref().map(|bars| spinner(bars, &name));
                Row { name, state: State::Starting, pid: 0, bar, last_progress: None }
            })
            .collect();
        let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        Self { rows, bars, width, began: Instant::now() }
    }

    /// Takes in what happened to service `number`.
    pub fn note(&mut self, number: usize, event: Event) {
        let name = format!("{:width$}", self.rows[number].name, width = self.width);
        match event {
            Event::Log(line) => self.print(&format!("{name} | {line}")),
            Event::Progress(progress) => self.progress(number, &progress),
            Event::Started { pid } => {
                let row = &mut self.rows[number];
                (row.pid, row.state) = (pid, State::Starting);
                row.show("starting");
            }
            Event::Ended { why, again } => {
                self.rows[number].state = State::Waiting;
                let then = again.map_or_else(
                    || "not tried again".to_owned(),
                    |after| format!("starting again in {:.1} s", after.as_secs_f64()),
                );
                self.print(&format!("{name} ! {why}; {then}"));
                self.rows[number].show(&format!("{why}; {then}"));
            }
            Event::Stopped { why } => {
                self.rows[number].state = State::Stopped;
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                self.print(&format!("{name} . stopped{why}"));
            }
        }
    }

    /// The process of this pid takes work: its number, if that is news.
    pub fn ready(&mut self, pid: u32, detail: &str) -> Option<usize> {
        let number = self.rows.iter().position(|row| row.pid == pid && row.state == State::Starting)?;
        self.rows[number].state = State::Ready { detail: detail.to_owned() };
        self.rows[number].show(&format!("ready  {detail}"));
        if self.rows[number].bar.is_none() {
            self.print(&self.line(number));
        }
        Some(number)
    }

    pub fn all_ready(&self) -> bool {
        self.rows.iter().all(|row| matches!(row.state, State::Ready { .. }))
    }

    /// Ends the bars: from now on there are only lines.
    pub fn settle(&mut self) {
        let Some(bars) = self.bars.take() else { return };
        // A terminal that cannot be cleared shows stale bars; no reason to stop.
        let _ = bars.clear();
        for number in 0..self.rows.len() {
            self.rows[number].bar = None;
            self.print(&self.line(number));
        }
    }

    /// One line for the user, above the bars.
    pub fn print(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn line(&self, number: usize) -> String {
        let row = &self.rows[number];
        let state = match &row.state {
            State::Starting => "starting".to_owned(),
            State::Ready { detail } => format!("ready     pid {:<7} {detail}", row.pid),
            State::Waiting => "failed".to_owned(),
            State::Stopped => "stopped".to_owned(),
        };
        format!("{:width$}   {state}", row.name, width = self.width)
    }

    fn progress(&mut self, number: usize, progress: &Progress) {
        let name = self.rows[number].name.clone();
        let row = &mut self.rows[number];
        match &row.bar {
            Some(bar) => {
                if bar.length() != Some(progress.total) {
                    bar.set_style(bar_style());
                    bar.set_length(progress.total);
                }
                bar.set_message(progress.what.clone());
                bar.set_position(progress.done);
            }
            None => {
                let due = row.last_progress.is_none_or(|last| last.elapsed() >= PROGRESS_LINE_EVERY);
                if due {
                    row.last_progress = Some(Instant::now());
                    let share = 100 * progress.done / progress.total.max(1);
                    self.print(&format!("{name:width$}   {} {share} %", progress.what, width = self.width));
                }
            }
        }
    }
}

impl Row {
    fn show(&self, state: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(spinner_style());
            bar.set_message(state.to_owned());
        }
    }
}

fn spinner(bars: &MultiProgress, name: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new_spinner());
    bar.set_style(spinner_style());
    bar.set_prefix(name.to_owned());
    bar.set_message("waiting");
    bar.enable_steady_tick(TICK);
    bar
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix:16} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix:16} [{bar:30}] {percent:>3} % {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
