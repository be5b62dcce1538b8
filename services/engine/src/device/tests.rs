use std::{collections::HashMap, io, sync::mpsc::channel, time::Duration};

use kv::transfer::{
    DeviceAddress, DeviceHandle, DeviceSlab, Event as Transfer, HostRoom, KvTransport, LinkConfig, PageIndex,
    Receiver, ReceiverConfig, Span, TcpTransport, TransferKey, Transports,
};
use messages::{
    block::{CacheScope, ClusterKey},
    kv::KvChange,
};
use models::{Executor, ExecutorError, KvLayout, SamplingBounds, SamplingParams};
use scheduler::{Choice, EndReason, Goal, Micros};

use super::*;
use crate::{
    sim::{SimExecutor, Timing},
    transport,
};

fn spec() -> ExecutorSpec {
    ExecutorSpec {
        device: "sim",
        pages: 256,
        page_size: 16,
        slots: 8,
        max_batch_tokens: 128,
        depth: 1,
        vocab_size: 5000,
        context_length: 1024,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "sim".to_owned(), layers: 1, layer_bytes: 64 },
        numerics_class: "sim".to_owned(),
    }
}

async fn device(step: Duration) -> (Device, mpsc::Receiver<Report>) {
    let build = move || {
        let timing = Timing { step, prefill_token: Duration::ZERO, page: Duration::ZERO };
        Ok(Built::on_host(SimExecutor::new(spec(), timing)))
    };
    let config = SchedulerConfig::new(ClusterKey::derive("test"));
    let config = SchedulerConfig { kv_events: true, ..config };
    Device::start("decode-1".parse().unwrap(), build, config, Duration::ZERO).await.unwrap()
}

fn request(run: u64, seed: u64, max_tokens: u32, output: &[u32]) -> Command {
    request_for(Goal::Output, run, seed, max_tokens, output)
}

fn request_for(goal: Goal, run: u64, seed: u64, max_tokens: u32, output: &[u32]) -> Command {
    let scope = CacheScope { revision: "r", adapter: None, salt: None };
    let request = Request {
        run: RunKey(run),
        goal,
        prompt: (0..40).collect(),
        choices: vec![Choice { index: 0, output: output.to_vec() }],
        params: SamplingParams { seed, ..SamplingParams::default() },
        max_tokens,
        priority: 0,
        deadline: None,
        root: ClusterKey::derive("test").root(&scope),
        score_prompt_from: None,
        arrived: Micros(0),
    };
    Command::Admit { request: Box::new(request), dispatch: Some(("router-1".parse().unwrap(), run)) }
}

/// Tokens and end of each run, once `runs` of them have closed or were refused.
async fn outcome(
    reports: &mut mpsc::Receiver<Report>,
    runs: usize,
) -> HashMap<u64, (Vec<u32>, Option<EndReason>)> {
    let mut seen: HashMap<u64, (Vec<u32>, Option<EndReason>)> = HashMap::new();
    let mut closed = 0;
    while closed < runs {
        match reports.recv().await.unwrap() {
            Report::Refused { run, .. } => {
                seen.insert(run.0, (Vec::new(), None));
                closed += 1;
            }
            Report::Cache(_) | Report::Waits { .. } | Report::Landed { .. } => {}
            Report::Step { events, .. } => {
                for event in events {
                    match event {
                        Event::Token { run, token, .. } => seen.entry(run.0).or_default().0.push(token),
                        Event::Ended { run, reason, .. } => seen.entry(run.0).or_default().1 = Some(reason),
                        Event::RunClosed { .. } => closed += 1,
                        Event::Started { .. } | Event::PromptScored { .. } | Event::BlocksComputed { .. } => {
                        }
                    }
                }
            }
        }
    }
    seen
}

#[tokio::test]
async fn a_run_that_goes_on_elsewhere_puts_out_what_it_would_have() {
    let (device, mut reports) = device(Duration::ZERO).await;
    device.command(request(1, 7, 20, &[])).unwrap();
    let whole = outcome(&mut reports, 1).await[&1].0.clone();
    assert_eq!(whole.len(), 20);
    device.command(request(2, 7, 20, &whole[..12])).unwrap();
    device.command(request(3, 8, 20, &[])).unwrap();
    let later = outcome(&mut reports, 2).await;
    assert_eq!(later[&2], (whole[12..].to_vec(), Some(EndReason::Length)));
    assert_ne!(later[&3].0, whole, "another seed draws other tokens");
}

#[tokio::test]
async fn a_cancel_ends_a_run_at_the_next_step() {
    let (device, mut reports) = device(Duration::from_millis(5)).await;
    device.command(request(1, 7, 900, &[])).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    device.command(Command::Cancel { run: RunKey(1), choice: None }).unwrap();
    let ended = outcome(&mut reports, 1).await;
    assert_eq!(ended[&1].1, Some(EndReason::Cancelled));
    assert!(ended[&1].0.len() < 100);
    assert_eq!(device.load().blocks_used, 0);
}

#[tokio::test]
async fn what_can_never_fit_is_refused_and_the_thread_goes_on() {
    let (device, mut reports) = device(Duration::ZERO).await;
    device.command(request(1, 7, 100, &[6000])).unwrap();
    device.command(request(2, 7, 4, &[])).unwrap();
    let ended = outcome(&mut reports, 2).await;
    assert_eq!(ended[&1], (Vec::new(), None), "6000 is not in the vocabulary");
    assert_eq!(ended[&2].0.len(), 4);
}

#[tokio::test]
async fn changes_of_the_cache_lead_to_its_snapshot() {
    let (device, mut reports) = device(Duration::ZERO).await;
    device.command(request(1, 7, 20, &[])).unwrap();
    let (answer, snapshot) = oneshot::channel();
    let (mut stored, mut next, mut closed) = (Vec::new(), 0, false);
    while !closed {
        match reports.recv().await.unwrap() {
            Report::Cache(events) => {
                assert_eq!(events.number, next, "numbers have no gaps");
                next += 1;
                for change in events.changes {
                    let KvChange::Stored(blocks) = change else { panic!("{change:?}") };
                    stored.extend(blocks.iter());
                }
            }
            Report::Step { events, .. } => {
                closed = events.iter().any(|event| matches!(event, Event::RunClosed { .. }));
            }
            Report::Refused { why, .. } => panic!("{why}"),
            Report::Waits { .. } | Report::Landed { .. } => {}
        }
    }
    device.command(Command::KvSnapshot(answer)).unwrap();
    let snapshot = snapshot.await.unwrap();
    assert_eq!(stored.len(), 3, "40 tokens of prompt and 19 of output fill three blocks");
    assert_eq!((snapshot.blocks.iter().collect::<Vec<_>>(), snapshot.next), (stored, next));
    assert_eq!(device.observed().seen, [("router-1".parse().unwrap(), 1)]);
}

/// What a device does instead of its work.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    LostInAStep,
    HangsInAStep,
    HangsInACopy,
    HangsWhereSlotsAreOpened,
    HangsOverChecksums,
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// An executor whose device is in trouble, and its memory.
struct Broken {
    spec: ExecutorSpec,
    trouble: Trouble,
}

impl Executor for Broken {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, _: &models::Batch) -> Result<models::Ticket, ExecutorError> {
        if self.trouble == Trouble::HangsInAStep {
            hang();
        }
        Err(ExecutorError::Device("cuda: CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()))
    }

    fn collect(&mut self, _: models::Ticket) -> Result<models::Outputs, ExecutorError> {
        Err(ExecutorError::Batch("no step".to_owned()))
    }

    fn read_page(&mut self, _: u32, _: &mut [u8]) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn write_page(&mut self, _: u32, _: &[u8]) -> Result<(), ExecutorError> {
        if self.trouble == Trouble::HangsInACopy {
            hang();
        }
        Ok(())
    }

    fn export_to(&mut self, _: Arc<dyn models::PageSink>) {}
}

impl DeviceMemory for Trouble {
    fn allocate(&self, _: u64) -> io::Result<Arc<dyn DeviceSlab>> {
        Ok(Arc::new(*self))
    }

    fn open(&self, _: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
        if *self == Self::HangsWhereSlotsAreOpened {
            hang();
        }
        Ok(Arc::new(*self))
    }

    fn room(&self, _: usize) -> io::Result<Box<dyn HostRoom>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DeviceSlab for Trouble {
    fn handle(&self) -> DeviceHandle {
        DeviceHandle([0; DeviceHandle::BYTES])
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress(0)
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn store(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn checksums(&self, _: &[Span]) -> io::Result<Vec<u64>> {
        if *self == Self::HangsOverChecksums {
            hang();
        }
        Ok(Vec::new())
    }
}

/// A page that has come over.
fn landed_page() -> LandedPage {
    let layout = transport::layout(&spec(), "r");
    let link = LinkConfig::new(TransferKey::derive(b"test"));
    let tcp: Box<dyn KvTransport> = Box::new(TcpTransport::new(link, "127.0.0.1:0".parse().unwrap(), 1));
    let transports = Transports(vec![tcp]);
    let config = ReceiverConfig { layout: layout.clone(), others: Vec::new(), slots: 1, slots_per_grant: 1 };
    let (landed, pages) = channel();
    let hear = move |event| {
        if let Transfer::Landed(page) = event {
            landed.send(page).unwrap();
        }
    };
    let receiver = Receiver::start(config, &transports.0, hear).unwrap();
    let grant = receiver.grant(1, "prefill-1").unwrap();
    let mut writer = transports.open(&grant, &layout).unwrap();
    writer.write(PageIndex(0), 0, &vec![0; layout.page_bytes() as usize]).unwrap();
    writer.finish().unwrap();
    pages.recv().unwrap()
}

/// Starts a device and brings it into its trouble.
async fn troubled(trouble: Trouble) -> (Device, mpsc::Receiver<Report>) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let build = move || {
        let memory: Arc<dyn DeviceMemory> = Arc::new(trouble);
        Ok(Built { memory: Some(memory), ..Built::on_host(Broken { spec: spec(), trouble }) })
    };
    let config = SchedulerConfig::new(ClusterKey::derive("test"));
    let started = Device::start("decode-1".parse().unwrap(), build, config, Duration::ZERO).await;
    let (device, mut reports) = started.unwrap();
    let memory = device.memory.clone().unwrap();
    match trouble {
        Trouble::LostInAStep | Trouble::HangsInAStep => device.command(request(1, 1, 4, &[])).unwrap(),
        Trouble::HangsInACopy => {
            device.command(request_for(Goal::OutputOnceLanded, 1, 1, 4, &[])).unwrap();
            assert!(matches!(reports.recv().await, Some(Report::Waits { held: 0, .. })));
            let land = Copy::Land { run: RunKey(1), block: 0, page: landed_page() };
            device.command(Command::Copy(land)).unwrap();
        }
        Trouble::HangsWhereSlotsAreOpened => {
            let theirs = DeviceHandle([1; DeviceHandle::BYTES]);
            std::thread::spawn(move || drop(memory.open(&theirs)));
        }
        Trouble::HangsOverChecksums => {
            std::thread::spawn(move || memory.allocate(64).unwrap().checksums(&[]));
        }
    }
    (device, reports)
}

/// Exit code and log of a test that is ignored otherwise.
fn ends(test: &str) -> (Option<i32>, String) {
    let this = std::env::current_exe().unwrap();
    let arguments = ["--exact", test, "--ignored", "--nocapture"];
    let output = std::process::Command::new(this).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn lose_the_device() {
    let (_device, mut reports) = troubled(Trouble::LostInAStep).await;
    while reports.recv().await.is_some() {}
}

#[test]
fn a_lost_device_ends_the_process_with_its_own_code_and_says_why() {
    let (code, log) = ends("device::tests::lose_the_device");
    assert_eq!(code, Some(DEVICE_LOST), "{log}");
    assert!(log.contains("device lost") && log.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{log}");
}

/// Far more heartbeats than the bound of a first step and the margin hold, in a shorter time.
async fn beat_beside(trouble: Trouble) {
    let (device, _reports) = troubled(trouble).await;
    for _ in 0..10_000 {
        device.beat();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn hang_in_a_step() {
    beat_beside(Trouble::HangsInAStep).await;
}

#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn hang_in_a_copy() {
    beat_beside(Trouble::HangsInACopy).await;
}

#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn hang_where_slots_are_opened() {
    beat_beside(Trouble::HangsWhereSlotsAreOpened).await;
}

#[tokio::test]
#[ignore = "run by the test below, as a process of its own"]
async fn hang_over_checksums() {
    beat_beside(Trouble::HangsOverChecksums).await;
}

#[test]
fn a_device_that_hangs_ends_the_process_with_the_same_code_whatever_it_is_at() {
    for at in ["hang_in_a_step", "hang_in_a_copy", "hang_where_slots_are_opened", "hang_over_checksums"] {
        let (code, log) = ends(&format!("device::tests::{at}"));
        assert_eq!(code, Some(DEVICE_LOST), "{at}: {log}");
        assert!(log.contains("the device hangs"), "{at}: {log}");
    }
}

/// An executor that lets no page be read.
struct Unreadable(SimExecutor);

impl Executor for Unreadable {
    fn spec(&self) -> &ExecutorSpec {
        self.0.spec()
    }

    fn submit(&mut self, batch: &models::Batch) -> Result<models::Ticket, ExecutorError> {
        self.0.submit(batch)
    }

    fn collect(&mut self, ticket: models::Ticket) -> Result<models::Outputs, ExecutorError> {
        self.0.collect(ticket)
    }

    fn read_page(&mut self, page: u32, _: &mut [u8]) -> Result<(), ExecutorError> {
        Err(ExecutorError::Batch(format!("no page {page}")))
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.0.write_page(page, from)
    }

    fn export_to(&mut self, sink: Arc<dyn models::PageSink>) {
        self.0.export_to(sink);
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_read_ends_the_feed_of_its_run_and_nothing_else() {
    let build = || {
        let timing = Timing { step: Duration::ZERO, prefill_token: Duration::ZERO, page: Duration::ZERO };
        Ok(Built::on_host(Unreadable(SimExecutor::new(spec(), timing))))
    };
    let config = SchedulerConfig::new(ClusterKey::derive("test"));
    let started = Device::start("prefill-1".parse().unwrap(), build, config, Duration::ZERO).await;
    let (device, mut reports) = started.unwrap();
    let run = RunKey(1);
    let pieces = device.feeds.open(run);
    let mut command = request(1, 7, 0, &[]);
    if let Command::Admit { request, .. } = &mut command {
        (request.goal, request.prompt) = (Goal::Blocks { from: 0 }, (0..32).collect());
    }
    device.command(command).unwrap();
    let computed = Event::BlocksComputed { run, blocks: 2 };
    while !matches!(reports.recv().await.unwrap(), Report::Step { events, .. } if events.contains(&computed))
    {
    }
    device.command(Command::Copy(Copy::Read { run, block: 0 })).unwrap();
    let ended = tokio::task::spawn_blocking(move || pieces.iter().last());
    assert!(ended.await.is_ok());
    device.command(request(2, 7, 4, &[])).unwrap();
    assert_eq!(outcome(&mut reports, 1).await[&2].0.len(), 4);
}
