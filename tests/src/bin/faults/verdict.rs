//! What a row of the table says, and whether that is good enough.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use stator_tests::Cluster;

use crate::{answer::Answer, load::Outcome};

/// What clients got, compared with what they get undisturbed.
#[derive(Debug, Default)]
pub struct Verdict {
    pub requests: usize,
    pub failed: usize,
    /// Answers that are not what they should be, in any respect.
    pub differ: usize,
    /// Characters.
    pub lost: usize,
    /// Characters.
    pub repeated: usize,
    /// Longest wait for the next event of a stream that was under way.
    pub gap: Duration,
    /// Longest wait from the blow on for the first event of a stream that was asked for before it.
    pub waited: Duration,
    /// Longest wait for the first event of a stream before the blow.
    pub usual: Duration,
    /// Longest wait for the first event of a stream that was asked for after the blow.
    pub first: Duration,
    /// What an undisturbed engine takes to prefill the journals that were sent anew.
    pub prefill: Duration,
    /// What the gap may be on top of that; `None`: it is not judged.
    pub bound: Option<Duration>,
    /// Gauges that did not come back to zero.
    pub leaks: Vec<String>,
    /// What else is wrong, a few examples of it.
    pub remarks: Vec<String>,
    /// Where the logs are.
    pub logs: Option<PathBuf>,
}

/// Remarks of one row.
const REMARKS: usize = 6;

impl Verdict {
    /// Judges the outcomes; gaps count from `blow` on.
    pub fn of(outcomes: &[Outcome], expected: &[Answer], blow: Instant) -> Self {
        let mut verdict = Self { requests: outcomes.len(), ..Self::default() };
        for outcome in outcomes {
            verdict.add(outcome, &expected[outcome.request], blow);
        }
        verdict
    }

    fn add(&mut self, outcome: &Outcome, expected: &Answer, blow: Instant) {
        let name = format!("request {} at {:.1} s", outcome.request, since(blow, outcome.began));
        match &outcome.answer {
            Err(error) => {
                self.failed += 1;
                self.remark(format!("{name}: {error:#}"));
                return;
            }
            Ok(answer) if answer != expected => {
                self.differ += 1;
                let (lost, repeated) = answer.lost_and_repeated(expected);
                self.lost += lost;
                self.repeated += repeated;
                self.remark(format!("{name} differs:\n      {}", answer.difference(expected)));
            }
            Ok(_) => {}
        }
        for pair in outcome.events.windows(2).filter(|pair| pair[1] >= blow) {
            let gap = pair[1] - pair[0];
            if gap > self.gap {
                self.gap = gap;
            }
        }
        if let Some(first) = outcome.events.first() {
            let (wait, from) = match (outcome.began >= blow, *first >= blow) {
                (true, _) => (&mut self.first, outcome.began),
                (false, true) => (&mut self.waited, blow),
                (false, false) => (&mut self.usual, outcome.began),
            };
            *wait = (*wait).max(*first - from);
        }
    }

    pub fn remark(&mut self, text: String) {
        if self.remarks.len() < REMARKS {
            self.remarks.push(text);
        }
    }

    /// Keeps the logs of a run that went wrong.
    pub fn keep_logs_of(&mut self, cluster: &Cluster, folder: &Path) {
        if self.good() {
            return;
        }
        match cluster.keep_logs(folder) {
            Ok(()) => self.logs = Some(folder.to_owned()),
            Err(error) => self.remark(format!("logs not kept: {error}")),
        }
    }

    /// Nothing failed, nothing is lost, repeated or leaked.
    pub fn clean(&self) -> bool {
        self.failed + self.differ + self.lost + self.repeated + self.leaks.len() == 0
            && self.remarks.is_empty()
    }

    pub fn good(&self) -> bool {
        self.clean() && self.in_time()
    }

    /// Streams under way paused no longer than they may, and those that had not begun waited no longer than that beyond
    /// what is usual.
    pub fn in_time(&self) -> bool {
        self.bound.is_none_or(|bound| {
            let allowed = bound + self.prefill;
            self.gap <= allowed && self.waited <= allowed + self.usual
        })
    }
}

fn since(blow: Instant, moment: Instant) -> f64 {
    match moment.checked_duration_since(blow) {
        Some(after) => after.as_secs_f64(),
        None => -blow.duration_since(moment).as_secs_f64(),
    }
}
