//! The compute pool: dedicated threads that render and encode, behind a bounded queue.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use parking_lot::Mutex;

use crate::encode::Words;

/// Hands jobs to the threads. They end when the last handle is gone.
pub struct Workers<J> {
    queue: SyncSender<J>,
}

/// A job that did not fit the queue.
#[derive(Debug)]
pub struct Full<J>(pub J);

impl<J: Send + 'static> Workers<J> {
    /// Starts `threads` threads; at most `queued` jobs wait.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(
        threads: usize,
        queued: usize,
        work: impl Fn(J, &mut Words) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(queued);
        let (jobs, work) = (Arc::new(Mutex::new(jobs)), Arc::new(work));
        for number in 0..threads.max(1) {
            let (jobs, work) = (jobs.clone(), work.clone());
            thread::Builder::new().name(format!("encode-{number}")).spawn(move || labour(&jobs, &*work))?;
        }
        Ok(Self { queue })
    }

    /// Never waits.
    ///
    /// # Errors
    /// Gives the job back if the queue is full.
    pub fn give(&self, job: J) -> Result<(), Full<J>> {
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => Full(job),
        })
    }
}

fn labour<J>(jobs: &Mutex<Receiver<J>>, work: &dyn Fn(J, &mut Words)) {
    let mut words = Words::default();
    loop {
        // Whoever holds the lock waits for the next job; the others wait for the lock.
        let next = jobs.lock().recv();
        let Ok(job) = next else { return };
        work(job, &mut words);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_full_queue_refuses_and_no_job_is_lost() {
        let (done, finished) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let workers = Workers::start(1, 2, move |job: u32, _: &mut Words| {
            gate.lock().recv().unwrap();
            done.send(job).unwrap();
        })
        .unwrap();
        let mut taken = Vec::new();
        let mut refused = 0;
        for job in 0..10 {
            match workers.give(job) {
                Ok(()) => taken.push(job),
                Err(Full(back)) => {
                    assert_eq!(back, job);
                    refused += 1;
                }
            }
        }
        assert!((7..=8).contains(&refused), "two wait, at most one is worked on");
        taken.iter().for_each(|_| go.send(()).unwrap());
        assert_eq!(finished.iter().take(taken.len()).collect::<Vec<u32>>(), taken);
    }
}
