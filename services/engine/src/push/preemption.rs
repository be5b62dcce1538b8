use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use kv::transfer::{
    DeviceAddress, DeviceHandle, DeviceMemory, DeviceSlab, Event as Transfer, HostRoom, LinkConfig,
    ReceiverConfig, TcpTransport, TransferKey,
};
use messages::block::{CacheScope, ClusterKey};
use models::{
    Batch, Copying, Executor, ExecutorError, ExecutorSpec, KvLayout, Outputs, PageMove, PageSink,
    SamplingBounds, SamplingParams, Ticket,
};
use scheduler::{Choice, Event, Goal, Micros, Request, SchedulerConfig};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{
    copied::Copied,
    device::Report,
    executor::Built,
    sim::{SimExecutor, Timing},
    transport,
};

/// Takes one run at a time, a block a step.
fn spec() -> ExecutorSpec {
    ExecutorSpec {
        device: "sim",
        pages: 128,
        page_size: 16,
        slots: 1,
        max_batch_tokens: 16,
        depth: 1,
        vocab_size: 5000,
        context_length: 1024,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "sim".to_owned(), layers: 2, layer_bytes: 64 },
        numerics_class: "sim".to_owned(),
    }
}

fn sim() -> SimExecutor {
    let step = Duration::from_millis(5);
    SimExecutor::new(spec(), Timing { step, prefill_token: Duration::ZERO, page: Duration::ZERO })
}

/// The same with memory of a device: pages are stored in host rooms, which hold zeros as all of its pages do.
struct SimDevice(SimExecutor);

struct Memory;

impl Executor for SimDevice {
    fn spec(&self) -> &ExecutorSpec {
        self.0.spec()
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        self.0.submit(batch)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError> {
        self.0.collect(ticket)
    }

    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        self.0.read_page(page, to)
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.0.write_page(page, from)
    }

    fn export_to(&mut self, _: Arc<dyn PageSink>) {}

    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        Ok(Box::new(Copied(moves.len())))
    }
}

impl DeviceMemory for Memory {
    fn allocate(&self, _: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&self, bytes: usize) -> io::Result<Box<dyn HostRoom>> {
        Ok(Box::new(Room(vec![0; bytes])))
    }
}

struct Room(Vec<u8>);

impl HostRoom for Room {
    fn address(&self) -> DeviceAddress {
        DeviceAddress(0)
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn admit(run: RunKey, goal: Goal, priority: i32, prompt: std::ops::Range<u32>) -> Command {
    let scope = CacheScope { revision: "r", adapter: None, salt: None };
    let request = Request {
        run,
        goal,
        prompt: prompt.collect(),
        choices: vec![Choice { index: 0, output: Vec::new() }],
        params: SamplingParams::default(),
        max_tokens: 60,
        priority,
        deadline: None,
        root: ClusterKey::derive("test").root(&scope),
        score_prompt_from: None,
        arrived: Micros(0),
    };
    Command::Admit { request: Box::new(request), dispatch: None }
}

/// Feeds what is computed to those who push it, as the actor does, and tells all that happens.
fn follow(device: &Device, mut reports: mpsc::Receiver<Report>) -> mpsc::Receiver<Event> {
    let (tell, told) = mpsc::channel(1024);
    let feeds = device.feeds.clone();
    tokio::spawn(async move {
        while let Some(report) = reports.recv().await {
            let Report::Step { events, .. } = report else { continue };
            for event in events {
                if let Event::BlocksComputed { run, blocks } = event {
                    feeds.computed(run, blocks);
                }
                let _ = tell.try_send(event);
            }
        }
    });
    told
}

async fn until(told: &mut mpsc::Receiver<Event>, right: impl Fn(&Event) -> bool) {
    while !right(&told.recv().await.expect("the device goes on")) {}
}

/// Pushes a prompt out of the batch, then its blocks to a receiver.
async fn push_what_was_preempted(executor: fn() -> Built) {
    const CACHED: u32 = 4;
    const BLOCKS: u32 = 32;
    const ENOUGH: Duration = Duration::from_secs(60);
    let (earlier, pushed, urgent) = (RunKey(1), RunKey(2), RunKey(3));
    let config = SchedulerConfig::new(ClusterKey::derive("test"));
    let name = "prefill-1".parse().unwrap();
    let started = Device::start(name, move || Ok(executor()), config, Duration::ZERO).await;
    let (device, reports) = started.unwrap();
    let mut told = follow(&device, reports);
    let blocks = Goal::Blocks { from: 0 };
    device.command(admit(earlier, blocks, 0, 0..CACHED * 16)).unwrap();
    until(&mut told, |event| *event == Event::BlocksComputed { run: earlier, blocks: CACHED }).await;
    device.command(Command::Cancel { run: earlier, choice: None }).unwrap();

    let pieces = device.feeds.open(pushed);
    let started = |run| move |event: &Event| matches!(event, Event::Started { run: of, .. } if *of == run);
    device.command(admit(pushed, blocks, 0, 0..BLOCKS * 16)).unwrap();
    until(&mut told, started(pushed)).await;
    device.command(admit(urgent, Goal::Output, 1, 2000..2016)).unwrap();
    until(&mut told, started(urgent)).await;
    assert_eq!(device.load().preemptions, 1);

    let layout = transport::layout(&device.spec, "r");
    let link = LinkConfig::new(TransferKey::derive(b"test"));
    let tcp = TcpTransport::new(link, "127.0.0.1:0".parse().unwrap(), 1);
    let transports = Arc::new(Transports(vec![Box::new(tcp)]));
    let config = ReceiverConfig { layout: layout.clone(), others: Vec::new(), slots: 4, slots_per_grant: 4 };
    let landed = Arc::new(AtomicU32::new(0));
    let count = landed.clone();
    let on_event = move |event| {
        if matches!(event, Transfer::Landed(_)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let receiver = kv::transfer::Receiver::start(config, &transports.0, on_event).unwrap();
    let grant = receiver.grant(BLOCKS, "prefill-1").unwrap();
    let rooms = device.memory.clone().map(|memory| Arc::new(Rooms::new(memory, &layout)));
    let push = Push { run: pushed, first: 0, grant, layout, pieces, device, transports, rooms };
    let (end, ended) = oneshot::channel();
    thread::spawn(move || end.send(push.run()));
    let ended = tokio::time::timeout(ENOUGH, ended).await.expect("it does not wait for ever").unwrap();
    ended.unwrap();
    assert_eq!(landed.load(Ordering::Relaxed), BLOCKS);
}

#[tokio::test]
async fn all_blocks_of_a_prompt_that_was_preempted_get_through() {
    push_what_was_preempted(|| Built::on_host(sim())).await;
}

#[tokio::test]
async fn all_blocks_that_a_device_has_of_it_get_through() {
    push_what_was_preempted(|| Built {
        executor: Box::new(SimDevice(sim())),
        memory: Some(Arc::new(Memory)),
        weight_bytes: 0,
    })
    .await;
}
