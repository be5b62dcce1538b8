//! How the threads of an executor go through the phases of a step.

use super::{engine::Engine, task::Task};
use crate::team::Work;

impl Work for Engine {
    fn open(&self, phase: u32) -> u32 {
        // SAFETY: the thread that opens a phase runs alone in this step: all units before are finished.
        let state = unsafe { self.state_mut() };
        if let (Some(sink), Some(layer)) = (&state.sink, state.layer_before(phase as usize)) {
            for export in &state.step.exports {
                // SAFETY: no unit runs now.
                let bytes = unsafe { self.pool.layer(export.page as usize, layer) };
                sink.layer(export, layer as u32, bytes);
            }
        }
        let phase = state.step.phases[phase as usize];
        state.profile.begin(phase.kind);
        phase.units as u32
    }

    fn run(&self, phase: u32, unit: u32, worker: usize) {
        // SAFETY: a step is running; this thread alone has this worker's scratch.
        let (state, scratch) = unsafe { (self.state(), &mut self.workers.write(worker..worker + 1)[0]) };
        let key = (state.number, phase);
        let task = Task { engine: self, step: &state.step, slots: &state.slots, key };
        task.run(state.step.phases[phase as usize], unit as usize, scratch);
    }
}
