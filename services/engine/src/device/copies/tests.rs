use std::{
    io,
    sync::{Arc, mpsc},
};

use kv::transfer::{
    DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, Event, HostRoom, KvTransport, LinkConfig,
    PageIndex, Receiver, ReceiverConfig, Span, TcpTransport, TransferKey, Transports,
};
use messages::block::{CacheScope, ClusterKey};
use models::{Batch, ExecutorSpec, KvLayout, Outputs, PageSink, SamplingBounds, SamplingParams, Ticket};
use scheduler::{Choice, Goal, Micros, Request, RunKey, SchedulerConfig};

use super::*;
use crate::{copied::Copied, transport};

const RUN: RunKey = RunKey(1);

/// An executor with room for so many calls, where no call may find none.
struct Narrow {
    spec: ExecutorSpec,
    room: u32,
    calls: Vec<&'static str>,
}

impl Narrow {
    fn call(&mut self, what: &'static str) -> Result<(), ExecutorError> {
        let left = self.room.checked_sub(1);
        self.room = left.ok_or_else(|| ExecutorError::Device(format!("no room to {what}")))?;
        self.calls.push(what);
        Ok(())
    }
}

impl Executor for Narrow {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, _: &Batch) -> Result<Ticket, ExecutorError> {
        unreachable!("no step here")
    }

    fn collect(&mut self, _: Ticket) -> Result<Outputs, ExecutorError> {
        unreachable!("no step here")
    }

    fn read_page(&mut self, _: u32, _: &mut [u8]) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn write_page(&mut self, _: u32, _: &[u8]) -> Result<(), ExecutorError> {
        self.call("write")
    }

    fn has_room(&self) -> bool {
        self.room > 0
    }

    fn export_to(&mut self, _: Arc<dyn PageSink>) {}

    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.call("push")?;
        Ok(Box::new(Copied(moves.len())))
    }

    fn pull_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.call("pull")?;
        Ok(Box::new(Copied(moves.len())))
    }
}

/// Device memory that swallows what is stored.
struct Sink;

impl DeviceMemory for Sink {
    fn allocate(&self, _: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        Ok(Arc::new(Self))
    }

    fn open(&self, _: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&self, _: usize) -> io::Result<Box<dyn HostRoom>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DeviceSlab for Sink {
    fn handle(&self) -> DeviceHandle {
        DeviceHandle([0; DeviceHandle::BYTES])
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress(0)
    }

    fn bytes(&self) -> u64 {
        u64::MAX
    }

    fn store(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn checksums(&self, _: &[Span]) -> io::Result<Vec<u64>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn spec() -> ExecutorSpec {
    ExecutorSpec {
        device: "sim",
        pages: 16,
        page_size: 16,
        slots: 2,
        max_batch_tokens: 64,
        depth: 2,
        vocab_size: 5000,
        context_length: 256,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "sim".to_owned(), layers: 1, layer_bytes: 64 },
        numerics_class: "sim".to_owned(),
    }
}

/// A scheduler whose one run waits for two blocks.
fn waiting() -> Scheduler {
    let key = ClusterKey::derive("test");
    let mut scheduler = Scheduler::new(SchedulerConfig::new(key.clone()), &spec());
    let request = Request {
        run: RUN,
        goal: Goal::OutputOnceLanded,
        prompt: (0..40).collect(),
        choices: vec![Choice { index: 0, output: Vec::new() }],
        params: SamplingParams::default(),
        max_tokens: 1,
        priority: 0,
        deadline: None,
        root: key.root(&CacheScope { revision: "r", adapter: None, salt: None }),
        score_prompt_from: None,
        arrived: Micros(0),
    };
    assert_eq!(scheduler.admit(request).unwrap().wanted_blocks, 2);
    scheduler
}

/// Pages that came over, in the order of blocks; with `memory` they are there.
fn landed(pages: u32, memory: Option<&dyn DeviceMemory>) -> Vec<LandedPage> {
    let layout = transport::layout(&spec(), "r");
    let link = LinkConfig::new(TransferKey::derive(b"test"));
    let tcp: Box<dyn KvTransport> = Box::new(TcpTransport::new(link, ([127, 0, 0, 1], 0).into(), 1));
    let transports = Transports(vec![tcp]);
    let (layout_of, slots) = (layout.clone(), pages);
    let config = ReceiverConfig { layout: layout_of, others: Vec::new(), slots, slots_per_grant: slots };
    let (sender, events) = mpsc::channel();
    let receiver = Receiver::start(config, &transports.0, move |event| drop(sender.send(event))).unwrap();
    if let Some(memory) = memory {
        receiver.keep_in(memory).unwrap();
    }
    let grant = receiver.grant(pages, "prefill-1").unwrap();
    let mut writer = transports.open(&grant, &layout).unwrap();
    for index in (0..pages).map(PageIndex) {
        writer.write(index, 0, &vec![0; layout.page_bytes() as usize]).unwrap();
    }
    writer.finish().unwrap();
    let page = |event| if let Event::Landed(page) = event { Some(page) } else { None };
    events.into_iter().filter_map(page).take(pages as usize).collect()
}

/// Copies and what they go through.
struct Turns {
    copies: Copies,
    executor: Narrow,
    scheduler: Scheduler,
    feeds: Feeds,
}

impl Turns {
    /// Begins with these pages at the end of what waits.
    fn new(pages: Vec<LandedPage>) -> Self {
        let mut copies = Copies::new(spec().kv.page_bytes());
        for (block, page) in (0..).zip(pages) {
            copies.push(Copy::Land { run: RUN, block, page });
        }
        let executor = Narrow { spec: spec(), room: 0, calls: Vec::new() };
        Self { copies, executor, scheduler: waiting(), feeds: Feeds::default() }
    }

    /// What lands in a turn with room for so many calls.
    fn turn(&mut self, room: u32) -> Vec<Landing> {
        self.executor.room = room;
        let mut reports = Vec::new();
        let Self { copies, executor, scheduler, feeds } = self;
        copies.run(executor, scheduler, feeds, Duration::from_secs(60), &mut reports).unwrap();
        let landings = reports.iter().map(|report| match report {
            Report::Landed { landing, .. } => *landing,
            _ => panic!("another report"),
        });
        landings.collect()
    }
}

#[test]
fn pages_wait_for_room_and_nothing_waits_for_them() {
    let mut turns = Turns::new(landed(2, None));
    assert_eq!(turns.turn(0), []);
    assert_eq!(turns.turn(1), [Landing::Taken]);
    assert_eq!(turns.turn(0), []);
    assert!(!turns.copies.is_empty());
    assert_eq!(turns.turn(1), [Landing::Complete]);
    assert!(turns.copies.is_empty());
    assert_eq!(turns.executor.calls, ["write", "write"]);
}

#[test]
fn pages_in_device_memory_take_the_room_of_one_call() {
    let mut turns = Turns::new(landed(2, Some(&Sink)));
    assert_eq!(turns.turn(1), [Landing::Taken, Landing::Complete]);
    assert_eq!(turns.executor.calls, ["pull"]);
}

#[test]
fn what_goes_out_does_not_take_the_room_of_what_came_before_it() {
    let mut turns = Turns::new(landed(1, Some(&Sink)));
    let (answer, answered) = mpsc::channel();
    let place = Place { address: DeviceAddress(0), seed: 0 };
    turns.copies.push(Copy::Out(CopyOut { run: RUN, blocks: vec![(0, place)], answer }));
    assert_eq!(turns.turn(1), [Landing::Taken]);
    assert!(answered.try_recv().is_err(), "it went out without room");
    turns.turn(1);
    assert_eq!(answered.try_recv().unwrap().wait().unwrap().len(), 1);
    assert_eq!(turns.executor.calls, ["pull", "push"]);
}
