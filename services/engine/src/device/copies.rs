use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use kv::transfer::{LandedPage, Place};
use models::{Copying, Executor, ExecutorError, PageMove};
use scheduler::{Landing, Scheduler};

use super::{Copy, CopyOut, Report};
use crate::feed::Feeds;

/// How long pages are copied between two steps, at least: tokens of others wait for it. At least one page is.
const PAUSE: Duration = Duration::from_millis(1);
/// The same, as a share of a step.
const SHARE: u32 = 20;
/// That the device is asked to copy between two steps.
const MOVES: usize = 64;

/// Pages that wait to be copied into or out of the pool.
pub(super) struct Copies {
    waiting: VecDeque<Copy>,
    page: Vec<u8>,
    /// Pages that the device copies out of their slots.
    pulled: VecDeque<(Box<dyn Copying>, Vec<LandedPage>)>,
}

impl Copies {
    pub fn new(page_bytes: usize) -> Self {
        Self { waiting: VecDeque::new(), page: vec![0; page_bytes], pulled: VecDeque::new() }
    }

    /// Whether nothing waits to be copied.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn push(&mut self, copy: Copy) {
        self.waiting.push_back(copy);
    }

    /// Copies some of what waits, as far as the executor has room, so that nothing waits for steps in flight; no step that
    /// could touch these pages is running. Steps take `step`.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn run(
        &mut self,
        executor: &mut dyn Executor,
        scheduler: &mut Scheduler,
        feeds: &Feeds,
        step: Duration,
        reports: &mut Vec<Report>,
    ) -> Result<(), ExecutorError> {
        let (mut moves, mut moved) = (Vec::new(), Vec::new());
        let (began, pause) = (Instant::now(), PAUSE.max(step / SHARE));
        while moves.len() < MOVES && began.elapsed() < pause && executor.has_room() {
            if !moves.is_empty() && matches!(self.waiting.front(), Some(Copy::Out(_))) {
                // What was begun takes the room.
                break;
            }
            match self.waiting.pop_front() {
                Some(Copy::Land { run, block, page }) => {
                    let address = page.address();
                    let landed = scheduler
                        .land(run, block, |to| match address {
                            Some(address) => {
                                moves.push(PageMove { page: to.0, address: address.0, seed: 0 });
                                Ok(())
                            }
                            None => executor.write_page(to.0, page.bytes()),
                        })
                        .or_else(|error| refused(error).map(|()| Landing::Refused))?;
                    if landed == Landing::Complete {
                        scheduler.go_on(run);
                    }
                    reports.push(Report::Landed { run, landing: landed });
                    if address.is_some() {
                        moved.push(page);
                    }
                }
                Some(Copy::GoOn(run)) => {
                    scheduler.go_on(run);
                }
                Some(Copy::Read { run, block }) => match scheduler.block(run, block) {
                    Some(page) => match executor.read_page(page.0, &mut self.page) {
                        Ok(()) => feeds.page(run, block, &self.page),
                        Err(error) => refused(error).map(|()| feeds.close(run))?,
                    },
                    None => feeds.missed(run, block),
                },
                Some(Copy::Out(out)) => copy_out(&out, executor, scheduler, feeds)
                    .or_else(|error| refused(error).map(|()| feeds.close(out.run)))?,
                None => break,
            }
        }
        if !moves.is_empty() {
            self.pulled.push_back((executor.pull_pages(&moves)?, moved));
        }
        Ok(())
    }

    /// Frees the slots of pages that the device has copied; with `wait`, of all.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn settle(&mut self, wait: bool) -> Result<(), ExecutorError> {
        while self.pulled.front().is_some_and(|(copying, _)| wait || copying.is_done()) {
            let Some((copying, pages)) = self.pulled.pop_front() else { break };
            copying.wait()?;
            drop(pages);
        }
        Ok(())
    }
}

/// Has the device copy blocks out, if all of them are there.
fn copy_out(
    out: &CopyOut,
    executor: &mut dyn Executor,
    scheduler: &Scheduler,
    feeds: &Feeds,
) -> Result<(), ExecutorError> {
    let moves = out.blocks.iter().map(|&(block, Place { address, seed })| {
        let page = scheduler.block(out.run, block)?;
        Some(PageMove { page: page.0, address: address.0, seed })
    });
    let Some(moves) = moves.collect::<Option<Vec<_>>>() else {
        let first = out.blocks.iter().map(|(block, _)| *block).min();
        first.into_iter().for_each(|first| feeds.missed(out.run, first));
        return Ok(());
    };
    // Who asked may have gone; what was started is waited for when it is dropped.
    let _ = out.answer.send(executor.push_pages(&moves)?);
    Ok(())
}

/// What the executor does not take concerns one run only.
fn refused(error: ExecutorError) -> Result<(), ExecutorError> {
    match error {
        ExecutorError::Batch(reason) => {
            tracing::error!(reason, "page refused by the executor");
            Ok(())
        }
        lost @ ExecutorError::Device(_) => Err(lost),
    }
}

#[cfg(test)]
mod tests;
