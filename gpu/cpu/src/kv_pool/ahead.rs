//! Memory for pages that will soon be used.
//!
//! The system gives memory out at its first touch and clears it then, which takes milliseconds where it comes in large
//! pieces (5 ms for 2 MiB in a virtual machine whose host gives out its own memory at that moment). A step that waits
//! for it holds up everybody in it, so a thread of its own touches what lies beyond the pages in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::memory::Region;

/// Bytes beyond the last page in use that are made ready.
const LEAD: usize = 32 << 20;
/// Made ready at once.
const PIECE: usize = 2 << 20;
/// Pause after each piece: others may want the core.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Ahead {
    shared: Arc<Shared>,
    len: usize,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes from the start on that are to be ready.
    wanted: AtomicUsize,
    stop: AtomicBool,
}

impl Ahead {
    /// Begins with the first of the `len` bytes of the region. Without a thread everything works, later.
    pub fn start(region: Arc<Region>, len: usize) -> Self {
        let shared =
            Arc::new(Shared { wanted: AtomicUsize::new(LEAD.min(len)), stop: AtomicBool::new(false) });
        let theirs = shared.clone();
        let serve = move || theirs.serve(&region, len);
        let thread = std::thread::Builder::new().name("kv-ahead".to_owned()).spawn(serve).ok();
        Self { shared, len, thread }
    }

    /// The first `end` bytes are in use.
    pub fn used(&self, end: usize) {
        let wanted = end.saturating_add(LEAD).min(self.len);
        let before = self.shared.wanted.load(Ordering::Relaxed);
        let is_worth_it = wanted >= before + PIECE || (wanted > before && wanted == self.len);
        if let Some(thread) = self.thread.as_ref().filter(|_| is_worth_it) {
            self.shared.wanted.store(wanted, Ordering::Relaxed);
            thread.thread().unpark();
        }
    }
}

impl Shared {
    fn serve(&self, region: &Region, len: usize) {
        let mut ready = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if ready >= self.wanted.load(Ordering::Relaxed) {
                std::thread::park();
                continue;
            }
            region.populate(ready, PIECE.min(len - ready));
            ready += PIECE;
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that touches kv memory panicked");
            }
        }
    }
}
