use std::time::Duration;

use models::{Batch, ExecutorSpec, Outputs};

use crate::{Admitted, Event, KvEvent, Load, Micros, Refusal, Request, RunKey, SchedulerConfig};

/// What [`Scheduler::plan`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// The batch is to be submitted.
    Step {
        /// How long the step may take before it must be taken for hung; generous, never below a floor.
        bound: Duration,
    },
    /// No request can go on and no step is in flight.
    Idle,
    /// The oldest step in flight must be collected first.
    Blocked,
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct Scheduler {
    load: Load,
}

impl Scheduler {
    pub fn new(_config: SchedulerConfig, _executor: &ExecutorSpec) -> Self {
        Self { load: Load::default() }
    }

    /// Takes a request in; it waits until a plan finds room for it.
    pub fn admit(&mut self, _request: Request, _now: Micros) -> Result<Admitted, Refusal> {
        Err(Refusal::QueueFull { queued: 0, limit: 0 })
    }

    /// Ends one choice of a run, or all; takes effect in the next `plan`. False if there is nothing to end.
    pub fn cancel(&mut self, _run: RunKey, _choice: Option<u32>) -> bool {
        false
    }

    /// Fills `batch` with the next step, reusing its buffers.
    pub fn plan(&mut self, _now: Micros, _batch: &mut Batch, _events: &mut Vec<Event>) -> Planned {
        Planned::Idle
    }

    /// Takes the outputs of the oldest step in flight.
    pub fn complete(&mut self, _outputs: Outputs, _now: Micros, _events: &mut Vec<Event>) {}

    /// Undoes the newest planned step, which the executor refused: its choices end as failed.
    pub fn reject(&mut self, _batch: &Batch, _events: &mut Vec<Event>) {}

    pub fn load(&self) -> Load {
        self.load
    }

    /// Appends the changes of the prefix cache since the last call. False: some were dropped, and whoever follows
    /// them needs a snapshot.
    pub fn take_kv_events(&mut self, _out: &mut Vec<KvEvent>) -> bool {
        true
    }

    /// The whole prefix cache as `Stored` events, parents first.
    pub fn kv_snapshot(&self) -> Vec<KvEvent> {
        Vec::new()
    }

    /// Verifies every invariant.
    pub fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
