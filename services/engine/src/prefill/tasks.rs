use std::sync::mpsc::Receiver;

use messages::{Attempt, InstanceId, RequestId, RunId, control::Cancel};

use crate::feed::Piece;

/// Blocks of a prompt that a decode engine waits for.
pub(super) struct Task {
    pub run: RunId,
    pub request: RequestId,
    pub attempt: Attempt,
    pub decode: InstanceId,
    /// Leading blocks that decode has.
    pub held: u32,
    pub blocks: u32,
    /// Leading blocks that are computed or cached.
    pub computed: u32,
    /// Until somebody pushes what comes from it.
    pub feed: Option<Receiver<Piece>>,
}

/// How far a task is.
pub(super) struct State {
    pub run: RunId,
    pub decode: InstanceId,
    /// Tokens to compute until it is done, those of earlier tasks included.
    pub tokens_ahead: u32,
}

/// All tasks, in the order in which they came.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: Vec<Task>,
}

impl Tasks {
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn knows(&self, run: RunId) -> bool {
        self.tasks.iter().any(|task| task.run == run)
    }

    pub fn insert(&mut self, task: Task) {
        self.tasks.push(task);
        self.tell();
    }

    /// False if it was not here.
    pub fn remove(&mut self, run: RunId) -> bool {
        let before = self.tasks.len();
        self.tasks.retain(|task| task.run != run);
        self.tell();
        self.tasks.len() < before
    }

    /// Sets the gauge of live tasks.
    pub fn tell(&self) {
        metrics::gauge!("stator_engine_runs_live").set(self.tasks.len() as f64);
    }

    fn get_mut(&mut self, run: RunId) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.run == run)
    }

    pub fn computed(&mut self, run: RunId, blocks: u32) {
        if let Some(task) = self.get_mut(run) {
            task.computed = blocks;
        }
    }

    /// Who wants blocks of a run: from which on, and how many.
    pub fn wants(&self, run: RunId) -> Option<(InstanceId, u32, u32)> {
        let task = self.tasks.iter().find(|task| task.run == run)?;
        Some((task.decode.clone(), task.held, task.blocks - task.held))
    }

    pub fn take_feed(&mut self, run: RunId) -> Option<Receiver<Piece>> {
        self.get_mut(run)?.feed.take()
    }

    pub fn all(&self) -> Vec<RunId> {
        self.tasks.iter().map(|task| task.run).collect()
    }

    pub fn of(&self, decode: &InstanceId) -> Vec<RunId> {
        self.tasks.iter().filter(|task| task.decode == *decode).map(|task| task.run).collect()
    }

    pub fn meant_by(&self, cancel: &Cancel) -> Vec<RunId> {
        let meant = |task: &&Task| {
            task.request == cancel.request
                && task.attempt <= cancel.attempt
                && cancel.choice.is_none()
                && cancel.run.is_none_or(|run| run == task.run)
        };
        self.tasks.iter().filter(meant).map(|task| task.run).collect()
    }

    /// How far each task is, in order.
    pub fn states(&self, page_size: u32) -> Vec<State> {
        let mut ahead = 0_u32;
        let state = |task: &Task| {
            ahead = ahead.saturating_add((task.blocks - task.computed.min(task.blocks)) * page_size);
            State { run: task.run, decode: task.decode.clone(), tokens_ahead: ahead }
        };
        self.tasks.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_waits_for_what_is_missing_of_itself_and_of_those_before_it() {
        let mut tasks = Tasks::default();
        for (run, blocks, computed) in [(1, 10, 8), (2, 100, 97)] {
            tasks.insert(Task {
                run: RunId(run),
                request: RequestId::mint(),
                attempt: Attempt::FIRST,
                decode: "decode-1".parse().unwrap(),
                held: 0,
                blocks,
                computed,
                feed: None,
            });
        }
        let ahead = |tasks: &Tasks| -> Vec<u32> {
            tasks.states(16).into_iter().map(|state| state.tokens_ahead).collect()
        };
        assert_eq!(ahead(&tasks), [32, 80]);
        tasks.computed(RunId(1), 10);
        assert_eq!(ahead(&tasks), [0, 48]);
    }
}
