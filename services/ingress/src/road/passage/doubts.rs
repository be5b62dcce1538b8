//! Reasons to think that a run has said more than has come here, and since when there are any.

use std::time::{Duration, Instant};

/// How long a lost batch is given to turn out to be somebody else's.
const LOST: Duration = Duration::from_millis(350);
/// How long an attach may take to bring the first frame.
const MEND: Duration = Duration::from_millis(1500);

#[derive(Debug, Default)]
pub struct Doubts {
    /// An attach is under way: gaps are its business.
    mending: Option<Instant>,
    /// A batch was lost, perhaps with frames of this request.
    lost: Option<Instant>,
    /// The tokenizer has handed the request on and knows of no run.
    adrift: Option<Instant>,
}

impl Doubts {
    /// A tokenizer was asked to take over the run's frames: whatever is missing comes with them.
    pub fn mend(&mut self, now: Instant) {
        *self = Self { mending: Some(now), ..Self::default() };
    }

    /// It has brought something.
    pub fn mended(&mut self) {
        self.mending = None;
    }

    /// The run was heard of, and had said nothing that is not here.
    pub fn heard(&mut self, heard: Instant) {
        self.mending = self.mending.filter(|since| heard <= *since);
    }

    pub fn is_mending(&self) -> bool {
        self.mending.is_some()
    }

    /// The attach begins only now, if there is one.
    pub fn mend_anew(&mut self, now: Instant) {
        self.mending = self.mending.map(|_| now);
    }

    /// True if that is news.
    pub fn lose(&mut self, now: Instant) -> bool {
        let news = self.lost.is_none();
        self.lost.get_or_insert(now);
        news
    }

    /// Nothing that was lost is missing here.
    pub fn lost_nothing(&mut self) {
        self.lost = None;
    }

    pub fn drift(&mut self, now: Instant) {
        self.adrift.get_or_insert(now);
    }

    pub fn drift_no_more(&mut self) {
        self.adrift = None;
    }

    /// Starts all clocks anew.
    pub fn give_time(&mut self, now: Instant) {
        for since in [&mut self.mending, &mut self.lost, &mut self.adrift].into_iter().flatten() {
            *since = now;
        }
    }

    /// When what may be missing is to be asked for. What was lost before there is a run is found then.
    pub fn due(&self, has_run: bool) -> Option<Instant> {
        let lost = self.lost.filter(|_| has_run).map(|since| since + LOST);
        let mending = self.mending.map(|since| since + MEND);
        lost.into_iter().chain(mending).min()
    }

    /// It is asked for.
    pub fn settle(&mut self) {
        self.lost = None;
        self.mending = None;
    }

    /// When a request that may drift for so long has done so.
    pub fn adrift_until(&self, patience: Duration) -> Option<Instant> {
        self.adrift.map(|since| since + patience)
    }
}
