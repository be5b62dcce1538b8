use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use kv::{
    PageLayout,
    transfer::{
        DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, Epoch, Grant, HostRoom, Transports, WriteError,
    },
};
use messages::block::{CacheScope, ClusterKey};
use models::{
    Batch, Executor, ExecutorError, ExecutorSpec, KvLayout, Outputs, PageMove, PageSink, SamplingBounds,
    SamplingParams, Ticket,
};
use parking_lot::Mutex;
use scheduler::{Choice, Event, Goal, Micros, Request, RunKey, SchedulerConfig};

use super::*;
use crate::{
    copied::Copied,
    device::{Command, Device, Report},
    executor::Built,
    feed::Piece,
    sim::{SimExecutor, Timing},
    transport,
};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const RUN: RunKey = RunKey(1);
const BLOCKS: u32 = 12;

/// What is in each room, by its number. The device puts another slice there, as it stores elsewhere in what is read.
type Contents = Arc<Mutex<Vec<&'static [u8]>>>;
/// Addresses of a room.
const ROOM_BITS: u32 = 32;

struct Memory(Contents);

impl DeviceMemory for Memory {
    fn allocate(&self, _: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&self, bytes: usize) -> io::Result<Box<dyn HostRoom>> {
        let mut contents = self.0.lock();
        contents.push(vec![0; bytes].leak());
        Ok(Box::new(Room { number: contents.len() - 1, contents: self.0.clone() }))
    }
}

struct Room {
    number: usize,
    contents: Contents,
}

impl HostRoom for Room {
    fn address(&self) -> DeviceAddress {
        DeviceAddress((self.number as u64) << ROOM_BITS)
    }

    fn bytes(&self) -> &[u8] {
        self.contents.lock()[self.number]
    }
}

/// A page of the pool: its number over and over.
fn page_bytes(page: u32) -> Vec<u8> {
    page.to_le_bytes().repeat(spec().kv.page_bytes() / 4)
}

/// A device that stores pages in rooms, and says which it was asked for.
struct Storing {
    sim: SimExecutor,
    contents: Contents,
    asked: mpsc::Sender<Vec<u32>>,
}

impl Executor for Storing {
    fn spec(&self) -> &ExecutorSpec {
        self.sim.spec()
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        self.sim.submit(batch)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError> {
        self.sim.collect(ticket)
    }

    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        self.sim.read_page(page, to)
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.sim.write_page(page, from)
    }

    fn export_to(&mut self, _: Arc<dyn PageSink>) {}

    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        let mut contents = self.contents.lock();
        for PageMove { page, address, .. } in moves {
            let (room, at) = ((address >> ROOM_BITS) as usize, (*address as u32) as usize);
            let (mut bytes, page) = (contents[room].to_vec(), page_bytes(*page));
            bytes[at..][..page.len()].copy_from_slice(&page);
            contents[room] = bytes.leak();
        }
        // Nobody may listen any more.
        let _ = self.asked.send(moves.iter().map(|of| of.page).collect());
        Ok(Box::new(Copied(moves.len())))
    }
}

/// Takes pages down. Before the first it waits until the device was asked for as many calls as it is to be ahead.
struct Paper {
    ahead: usize,
    asked: mpsc::Receiver<Vec<u32>>,
    pages: Vec<u32>,
    written: Vec<Vec<u8>>,
}

impl PageWriter for Paper {
    fn window(&self) -> u32 {
        BLOCKS
    }

    fn write(&mut self, index: PageIndex, layer: u32, bytes: &[u8]) -> Result<(), WriteError> {
        assert_eq!((index.0 as usize, layer), (self.written.len(), 0));
        while self.ahead > 0 {
            let pages = self.asked.recv_timeout(PATIENCE).expect("the device is not asked ahead");
            self.pages.extend(pages);
            self.ahead -= 1;
        }
        self.written.push(bytes.to_vec());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), WriteError> {
        Ok(())
    }
}

fn spec() -> ExecutorSpec {
    ExecutorSpec {
        device: "sim",
        pages: 64,
        page_size: 16,
        slots: 2,
        max_batch_tokens: 256,
        depth: 1,
        vocab_size: 5000,
        context_length: 1024,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "sim".to_owned(), layers: 2, layer_bytes: 32 },
        numerics_class: "sim".to_owned(),
    }
}

/// A device that has computed the blocks of a run; it goes on while its reports could be read.
async fn computed(
    contents: Contents,
    asked: mpsc::Sender<Vec<u32>>,
) -> (Device, tokio::sync::mpsc::Receiver<Report>) {
    let build = || {
        let timing = Timing { step: Duration::ZERO, prefill_token: Duration::ZERO, page: Duration::ZERO };
        Ok(Built::on_host(Storing { sim: SimExecutor::new(spec(), timing), contents, asked }))
    };
    let key = ClusterKey::derive("test");
    let config = SchedulerConfig::new(key.clone());
    let (device, mut reports) =
        Device::start("prefill-1".parse().unwrap(), build, config, Duration::ZERO).await.unwrap();
    let request = Request {
        run: RUN,
        goal: Goal::Blocks { from: 0 },
        prompt: (0..BLOCKS * spec().page_size).collect(),
        choices: vec![Choice { index: 0, output: Vec::new() }],
        params: SamplingParams::default(),
        max_tokens: 0,
        priority: 0,
        deadline: None,
        root: key.root(&CacheScope { revision: "r", adapter: None, salt: None }),
        score_prompt_from: None,
        arrived: Micros(0),
    };
    device.command(Command::Admit { request: Box::new(request), dispatch: None }).unwrap();
    let all = |event: &Event| matches!(event, Event::BlocksComputed { blocks: BLOCKS, .. });
    loop {
        if let Report::Step { events, .. } = reports.recv().await.unwrap()
            && events.iter().any(all)
        {
            return (device, reports);
        }
    }
}

fn layout() -> PageLayout {
    transport::layout(&spec(), "r")
}

/// Fetches all blocks while so many rooms are lent to others, and checks what was written.
async fn fetch(lent: usize, ahead: usize) {
    let (contents, (asks, asked)) = (Contents::default(), mpsc::channel());
    let rooms = Rooms::new(Arc::new(Memory(contents.clone())), &layout());
    let _others: Vec<_> = (0..lent).map(|_| rooms.take().unwrap()).collect();
    let (feed, pieces) = mpsc::channel();
    feed.send(Piece::Computed(BLOCKS)).unwrap();
    let (device, _reports) = computed(contents, asks).await;
    let grant = Grant {
        epoch: Epoch(1),
        pages: BLOCKS,
        slots: (0..BLOCKS).collect(),
        layout: layout(),
        slot_bytes: layout().page_bytes(),
        addresses: Vec::new(),
    };
    let push = Push {
        run: RUN,
        first: 0,
        grant,
        layout: layout(),
        pieces,
        device,
        transports: Arc::new(Transports(Vec::new())),
        rooms: None,
    };
    let mut paper = Paper { ahead, asked, pages: Vec::new(), written: Vec::new() };
    let mut progress = Progress::new(BLOCKS, layout().layers, BLOCKS);
    push.fetch(&rooms, &mut paper, &mut progress).unwrap();
    let Paper { asked, mut pages, written, .. } = paper;
    pages.extend(asked.try_iter().flatten());
    assert_eq!(pages.len(), BLOCKS as usize);
    assert!(written == pages.into_iter().map(page_bytes).collect::<Vec<_>>(), "other blocks were written");
}

#[tokio::test]
async fn the_device_stores_the_next_blocks_while_those_before_are_written() {
    fetch(0, 2).await;
}

#[tokio::test]
async fn a_push_that_finds_one_room_comes_to_its_end() {
    fetch(Rooms::MOST - 1, 1).await;
}
