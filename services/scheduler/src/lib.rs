//! Decides what an engine computes next: requests, blocks and time go in, batches for a
//! [`models::Executor`] come out, and what the executor returns becomes tokens and ends.
//!
//! A pure state machine: no I/O, no device, no clock, no randomness, so that the same calls give the same batches.
//! Continuous batching with chunked prefill, a radix prefix cache over reference-counted pages, preemption by
//! recompute, priorities and deadlines.
//!
//! The loop of its driver, at any depth:
//!
//! ```text
//! loop {
//!     admit, cancel what has come in
//!     match plan(now, batch, events) {
//!         Step(_) => tickets.push_back(executor.submit(batch)),     refused: reject(batch, events)
//!         Idle    => wait for a request
//!         Blocked => complete(executor.collect(tickets.pop_front()), events)
//!     }
//! }
//! ```

mod blocks;
mod config;
mod event;
mod load;
mod request;
mod scheduler;
mod sequence;
mod slab;
mod speed;
mod time;

pub use config::{
    LPM_PATIENCE, LPM_WINDOW, PROMPT_SHARE, QUICK_STEP, SchedulePolicy, SchedulerConfig, UnknownPolicy,
};
pub use event::{EndReason, Event, KvEvent, Usage};
pub use load::Load;
pub use request::{Admitted, Choice, Goal, Refusal, Request, RunKey};
pub use scheduler::{Landing, Planned, Scheduler};
pub use time::Micros;
