//! What the threads of an executor share.

use std::{cell::UnsafeCell, sync::Arc};

use models::PageSink;

use super::{
    PhaseKind, Profile,
    buffers::{Buffers, Worker},
    dimensions::Dimensions,
    slots::Slots,
    step::Step,
};
use crate::{Isa, kv_pool::KvPool, memory::Shared, rope::Rope, weights::Weights};

/// Weights, memory and the running step.
pub(super) struct Engine {
    pub isa: Isa,
    pub dimensions: Dimensions,
    pub weights: Weights,
    pub rope: Rope,
    pub pool: KvPool,
    pub buffers: Buffers,
    pub workers: Shared<Worker>,
    state: UnsafeCell<State>,
}

/// What changes from step to step: written between steps by the thread that owns the executor, read by all in a step.
pub(super) struct State {
    pub slots: Slots,
    pub step: Step,
    /// Counts steps.
    pub number: u64,
    pub profile: Profile,
    pub sink: Option<Arc<dyn PageSink>>,
}

impl State {
    /// The layer whose keys and values are all stored once the phases before this one have ended.
    pub fn layer_before(&self, phase: usize) -> Option<usize> {
        let before = self.step.phases.get(phase.checked_sub(1)?)?;
        (before.kind == PhaseKind::Attention).then_some(before.index)
    }
}

// SAFETY: the buffers are divided among units (see [`super::task::Task`]), a worker's scratch belongs to its thread, and the state is
// written between steps or, its profile, by the one thread that opens a phase.
unsafe impl Sync for Engine {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Engine {}

impl Engine {
    pub fn new(
        (isa, dimensions): (Isa, Dimensions),
        (weights, rope): (Weights, Rope),
        pool: KvPool,
        (buffers, workers): (Buffers, Shared<Worker>),
        slots: Slots,
    ) -> Self {
        let (step, profile) = (Step::default(), Profile::default());
        let state = UnsafeCell::new(State { slots, step, number: 0, profile, sink: None });
        Self { isa, dimensions, weights, rope, pool, buffers, workers, state }
    }

    /// # Safety
    /// A step is running, or nobody writes the state.
    pub unsafe fn state(&self) -> &State {
        // SAFETY: the caller's promise.
        unsafe { &*self.state.get() }
    }

    /// # Safety
    /// No step is running and nobody else uses the state.
    #[expect(clippy::mut_from_ref, reason = "the state is a cell")]
    pub unsafe fn state_mut(&self) -> &mut State {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.state.get() }
    }
}
