use std::collections::VecDeque;

use models::{Executor, ExecutorError};
use scheduler::{Landing, Scheduler};

use super::{Copy, Report};
use crate::feed::Feeds;

/// Copied between two steps: about a millisecond of memory traffic, so that tokens of others are not held up.
const BYTES_PER_PAUSE: usize = 4 << 20;
/// Copied between two steps, however small pages are.
const PAGES_PER_PAUSE: usize = 64;

/// Pages that wait to be copied into or out of the pool.
pub(super) struct Copies {
    waiting: VecDeque<Copy>,
    per_pause: usize,
    page: Vec<u8>,
}

impl Copies {
    pub fn new(page_bytes: usize) -> Self {
        let per_pause = (BYTES_PER_PAUSE / page_bytes.max(1)).clamp(1, PAGES_PER_PAUSE);
        Self { waiting: VecDeque::new(), per_pause, page: vec![0; page_bytes] }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn push(&mut self, copy: Copy) {
        self.waiting.push_back(copy);
    }

    /// Copies some of what waits; no step that could touch these pages is running.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn run(
        &mut self,
        executor: &mut dyn Executor,
        scheduler: &mut Scheduler,
        feeds: &Feeds,
        reports: &mut Vec<Report>,
    ) -> Result<(), ExecutorError> {
        for _ in 0..self.per_pause {
            match self.waiting.pop_front() {
                Some(Copy::Land { run, block, page }) => {
                    let landed = scheduler
                        .land(run, block, |to| executor.write_page(to.0, page.bytes()))
                        .or_else(refused)?;
                    if landed == Landing::Complete {
                        scheduler.go_on(run);
                    }
                    reports.push(Report::Landed { run, landing: landed });
                }
                Some(Copy::GoOn(run)) => {
                    scheduler.go_on(run);
                }
                Some(Copy::Read { run, block }) => {
                    // A run that ended meanwhile wants nothing any more.
                    let Some(page) = scheduler.block(run, block) else { continue };
                    executor.read_page(page.0, &mut self.page)?;
                    feeds.page(run, block, &self.page);
                }
                None => break,
            }
        }
        Ok(())
    }
}

/// What the executor does not take has not landed; the run goes on without it.
fn refused(error: ExecutorError) -> Result<Landing, ExecutorError> {
    match error {
        ExecutorError::Batch(reason) => {
            tracing::error!(reason, "page refused by the executor");
            Ok(Landing::Refused)
        }
        lost @ ExecutorError::Device(_) => Err(lost),
    }
}
