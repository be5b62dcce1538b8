//! Computed blocks on their way from the device thread to those who push them to other engines.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use models::{Export, PageSink};
use parking_lot::Mutex;
use scheduler::RunKey;

/// Bytes of layers that may wait to be pushed. What comes beyond is left out and read from its page later.
const BACKLOG_BYTES: usize = 64 << 20;

/// What a pusher hears of its run, in order.
pub enum Piece {
    /// One layer of a block, while the step that computes it still runs. Layers may be left out.
    Layer { block: u32, layer: u32, bytes: Held },
    /// A whole block that was asked for.
    Page { block: u32, bytes: Held },
    /// These leading blocks are computed: they may be asked for, and no further layer of them comes.
    Computed(u32),
    /// What was asked for of the blocks from this one on is not there, for the run was pushed out of the batch, and does not
    /// come. Once they are computed [`Piece::Computed`] says so.
    Missed(u32),
}

/// Bytes that count as waiting until they are dropped.
pub struct Held {
    bytes: Vec<u8>,
    backlog: Arc<AtomicUsize>,
}

impl Held {
    fn new(bytes: &[u8], backlog: &Arc<AtomicUsize>) -> Self {
        backlog.fetch_add(bytes.len(), Ordering::Relaxed);
        Self { bytes: bytes.to_vec(), backlog: backlog.clone() }
    }
}

impl std::ops::Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.backlog.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// The feeds of all runs whose blocks somebody wants.
#[derive(Default)]
pub struct Feeds {
    by_run: Mutex<HashMap<u64, Sender<Piece>>>,
    backlog: Arc<AtomicUsize>,
}

impl Feeds {
    /// Opens the feed of a run; it ends when it is closed.
    pub fn open(&self, run: RunKey) -> Receiver<Piece> {
        let (feed, pieces) = channel();
        self.by_run.lock().insert(run.0, feed);
        pieces
    }

    pub fn close(&self, run: RunKey) {
        self.by_run.lock().remove(&run.0);
    }

    pub fn computed(&self, run: RunKey, blocks: u32) {
        self.send(run.0, Piece::Computed(blocks));
    }

    /// Hands on a whole block.
    pub fn page(&self, run: RunKey, block: u32, bytes: &[u8]) {
        self.send(run.0, Piece::Page { block, bytes: Held::new(bytes, &self.backlog) });
    }

    pub fn missed(&self, run: RunKey, block: u32) {
        self.send(run.0, Piece::Missed(block));
    }

    /// Whoever reads a feed may have gone.
    fn send(&self, run: u64, piece: Piece) {
        if let Some(feed) = self.by_run.lock().get(&run) {
            let _ = feed.send(piece);
        }
    }
}

impl PageSink for Feeds {
    fn layer(&self, export: &Export, layer: u32, bytes: &[u8]) {
        if self.backlog.load(Ordering::Relaxed) + bytes.len() <= BACKLOG_BYTES {
            let bytes = Held::new(bytes, &self.backlog);
            self.send(export.run, Piece::Layer { block: export.block, layer, bytes });
        }
    }
}
