//! Real connections of all transports, within one process; device memory is of the host here.

mod device;
mod fuzz;
mod hand_over;
mod hostile;
mod kept;
mod listening;
mod rearranged;
mod revocation;

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::*;
use crate::PageLayout;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const LAYERS: u32 = 3;
const LAYER_BYTES: u32 = 4096;

fn layout() -> PageLayout {
    let (revision, name) = ("r1".to_owned(), "bytes".to_owned());
    PageLayout { revision, name, page_size: 16, layers: LAYERS, layer_bytes: LAYER_BYTES }
}

/// Bytes that differ by grant, page, layer and place.
fn layer_of(seed: u64, index: PageIndex, layer: u32) -> Vec<u8> {
    let start = seed << 40 ^ u64::from(index.0) << 20 ^ u64::from(layer) << 8;
    (0..u64::from(LAYER_BYTES))
        .map(|at| ((start + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

fn page_of(seed: u64, index: PageIndex) -> Vec<u8> {
    (0..LAYERS).flat_map(|layer| layer_of(seed, index, layer)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Shm,
    Ipc,
    Tcp,
}

const ALL: [Scheme; 3] = [Scheme::Shm, Scheme::Ipc, Scheme::Tcp];

/// The page, wherever it landed.
fn bytes(page: &LandedPage) -> Vec<u8> {
    match page.address() {
        Some(address) => device::load(address, layout().page_bytes()),
        None => page.bytes().to_vec(),
    }
}

/// A receiver and the transports that reach it.
struct Bench {
    receiver: Receiver,
    events: mpsc::Receiver<Event>,
    transports: Arc<Transports>,
    _folder: tempfile::TempDir,
}

fn link(secret: &[u8]) -> LinkConfig {
    let teardown = Duration::from_millis(300);
    LinkConfig { stall: Duration::from_secs(5), teardown, ..LinkConfig::new(TransferKey::derive(secret)) }
}

fn transports(scheme: Scheme, link: LinkConfig, folder: &std::path::Path) -> Transports {
    Transports(vec![match scheme {
        Scheme::Shm => Box::new(ShmTransport::new(link, folder.join("kv"))),
        Scheme::Ipc => Box::new(IpcTransport::new(link, folder.join("kv"), Arc::new(device::HostMemory))),
        Scheme::Tcp => Box::new(TcpTransport::new(link, ([127, 0, 0, 1], 0).into(), 2)),
    }])
}

impl Bench {
    fn new(scheme: Scheme, slots: u32) -> Self {
        Self::with(scheme, slots, link(b"secret"))
    }

    fn with(scheme: Scheme, slots: u32, link: LinkConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let transports = transports(scheme, link, folder.path());
        let (sender, events) = mpsc::channel();
        let config = ReceiverConfig { layout: layout(), others: Vec::new(), slots, slots_per_grant: slots };
        let receiver = Receiver::start(config, &transports.0, move |event| drop(sender.send(event))).unwrap();
        Self { receiver, events, transports: Arc::new(transports), _folder: folder }
    }

    fn open(&self, pages: u32) -> (Grant, Box<dyn PageWriter>) {
        let grant = self.receiver.grant(pages, "prefill-1").unwrap();
        let writer = self.transports.open(&grant, &layout()).unwrap();
        (grant, writer)
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    fn landed(&self) -> LandedPage {
        match self.event() {
            Event::Landed(page) => page,
            ended => panic!("{ended:?} where a page should have landed"),
        }
    }

    fn ended(&self) -> (Epoch, GrantEnd) {
        match self.event() {
            Event::Ended { epoch, end } => (epoch, end),
            Event::Landed(page) => panic!("page {:?} landed where the grant should have ended", page.index()),
        }
    }

    /// Takes every page until the grant ends, and says how it ended.
    fn drain(&self, epoch: Epoch) -> (BTreeMap<PageIndex, Vec<u8>>, GrantEnd) {
        let mut pages = BTreeMap::new();
        loop {
            match self.event() {
                Event::Landed(page) => {
                    assert_eq!(page.epoch(), epoch);
                    assert_eq!(pages.insert(page.index(), bytes(&page)), None, "landed twice");
                }
                Event::Ended { epoch: of, end } => {
                    assert_eq!(of, epoch);
                    return (pages, end);
                }
            }
        }
    }

    /// Slots are given back by other threads: waits until they have.
    fn settles_at(&self, wanted: SlotCounts) {
        let end = Instant::now() + PATIENCE;
        while self.receiver.counts() != wanted {
            assert!(Instant::now() < end, "{:?} instead of {wanted:?}", self.receiver.counts());
            std::thread::yield_now();
        }
    }

    fn all_free(&self) {
        self.settles_at(SlotCounts { free: self.receiver.counts().total(), ..SlotCounts::default() });
    }
}

fn assert_pages(pages: &BTreeMap<PageIndex, Vec<u8>>, seed: u64, count: u32) {
    assert_eq!(pages.len() as u32, count);
    for (index, bytes) in pages {
        assert!(*bytes == page_of(seed, *index), "page {} holds other bytes than were pushed", index.0);
    }
}
