use std::{collections::BTreeMap, sync::mpsc::Receiver, time::Duration};

use messages::{Attempt, InstanceId, RequestId, RunId, control::Cancel, prefill::TaskPulse};

use crate::{device::Dispatch, feed::Piece};

/// Blocks of a prompt that a decode engine waits for.
pub(super) struct Task {
    pub run: RunId,
    pub request: RequestId,
    pub attempt: Attempt,
    pub decode: InstanceId,
    pub priority: i32,
    /// To be told once it begins.
    pub dispatch: Option<Dispatch>,
    /// Leading blocks that decode has.
    pub held: u32,
    pub blocks: u32,
    /// Leading blocks that are computed or cached.
    pub computed: u32,
    /// It has been in a batch. Until then even a prompt that is cached waits for those before it.
    pub started: bool,
    /// Until somebody pushes what comes from it.
    pub feed: Option<Receiver<Piece>>,
}

/// All tasks, in the order in which the scheduler serves them: by priority, then as they came.
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
        let at = self.tasks.partition_point(|other| other.priority >= task.priority);
        self.tasks.insert(at, task);
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

    pub fn started(&mut self, run: RunId, cached: u32) {
        if let Some(task) = self.get_mut(run) {
            (task.started, task.computed) = (true, cached);
        }
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

    pub fn take_dispatch(&mut self, run: RunId) -> Option<Dispatch> {
        self.get_mut(run)?.dispatch.take()
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

    /// When each task will be done, where a token takes `per_token`; in the order of tasks. 0 says that all of it is
    /// computed, and nothing else does.
    fn pulses(&self, page_size: u32, per_token: Duration) -> impl Iterator<Item = (&Task, TaskPulse)> {
        self.tasks.iter().scan(0_u32, move |ahead, task| {
            let missing = (task.blocks - task.computed.min(task.blocks)) * page_size;
            *ahead = ahead.saturating_add(missing);
            let is_computed = task.started && missing == 0;
            let takes = if is_computed { 0 } else { millis(per_token.saturating_mul(*ahead)).max(1) };
            Some((task, TaskPulse { run: task.run, remaining_ms: takes }))
        })
    }

    pub fn pulse(&self, run: RunId, page_size: u32, per_token: Duration) -> Option<TaskPulse> {
        self.pulses(page_size, per_token).map(|(_, pulse)| pulse).find(|pulse| pulse.run == run)
    }

    /// What to tell each decode engine of those of its tasks that `of` picks.
    pub fn news(
        &self,
        page_size: u32,
        per_token: Duration,
        of: impl Fn(RunId) -> bool,
    ) -> BTreeMap<InstanceId, Vec<TaskPulse>> {
        let mut news: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (task, pulse) in self.pulses(page_size, per_token).filter(|(task, _)| of(task.run)) {
            news.entry(task.decode.clone()).or_default().push(pulse);
        }
        news
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run, decode engine, priority, blocks, blocks computed.
    fn tasks<const N: usize>(of: [(u64, &str, i32, u32, u32); N]) -> Tasks {
        let mut tasks = Tasks::default();
        for (run, decode, priority, blocks, computed) in of {
            tasks.insert(Task {
                run: RunId(run),
                request: RequestId::mint(),
                attempt: Attempt::FIRST,
                decode: decode.parse().unwrap(),
                priority,
                dispatch: None,
                held: 0,
                blocks,
                computed,
                started: true,
                feed: None,
            });
        }
        tasks
    }

    /// Milliseconds of runs 1 to `N`, where a token takes one.
    fn remaining<const N: usize>(tasks: &Tasks) -> [u32; N] {
        std::array::from_fn(|at| {
            let pulse = tasks.pulse(RunId(at as u64 + 1), 16, Duration::from_millis(1));
            pulse.unwrap().remaining_ms
        })
    }

    #[test]
    fn a_prompt_waits_for_what_is_missing_of_itself_and_of_those_before_it() {
        let mut tasks = tasks([(1, "decode-1", 0, 10, 8), (2, "decode-1", 0, 100, 97)]);
        assert_eq!(remaining(&tasks), [32, 80]);
        tasks.computed(RunId(1), 10);
        assert_eq!(remaining(&tasks), [0, 48]);
    }

    #[test]
    fn those_of_a_higher_priority_are_before_it_whenever_they_came() {
        let of = |run, priority| (run, "decode-1", priority, 10, 0);
        let tasks = tasks([of(1, 0), of(2, -1), of(3, 7), of(4, 0)]);
        assert_eq!(remaining(&tasks), [320, 640, 160, 480]);
    }

    #[test]
    fn only_a_prompt_that_is_computed_has_no_time_left() {
        let mut tasks =
            tasks([(1, "decode-1", 1, 10, 0), (2, "decode-1", 0, 10, 10), (3, "decode-1", 0, 10, 9)]);
        assert_eq!(remaining(&tasks), [160, 0, 176]);
        let unmeasured = tasks.pulse(RunId(1), 16, Duration::ZERO).unwrap();
        assert_eq!(unmeasured.remaining_ms, 1);
        tasks.get_mut(RunId(2)).unwrap().started = false;
        assert_eq!(remaining(&tasks), [160, 160, 176], "it is cached, and its turn has not come");
    }

    #[test]
    fn each_decode_engine_gets_one_message_of_its_own_tasks() {
        let of = |run, decode| (run, decode, 0, 10, 0);
        let tasks = tasks([of(1, "decode-1"), of(2, "decode-2"), of(3, "decode-1"), of(4, "decode-2")]);
        let told = |of: fn(RunId) -> bool| -> Vec<(String, Vec<u64>)> {
            let news = tasks.news(16, Duration::from_millis(1), of).into_iter();
            let runs = |pulses: Vec<TaskPulse>| pulses.iter().map(|pulse| pulse.run.0).collect();
            news.map(|(decode, pulses)| (decode.to_string(), runs(pulses))).collect()
        };
        let name = |decode: &str, runs: &[u64]| (decode.to_owned(), runs.to_vec());
        assert_eq!(told(|_| true), [name("decode-1", &[1, 3]), name("decode-2", &[2, 4])]);
        assert_eq!(told(|run| run.0 == 3), [name("decode-1", &[3])], "of those that got on");
    }
}
