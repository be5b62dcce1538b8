//! Pages between processes through the memory of the GPU.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use cuda::{CudaExecutor, KvBudget};
use kv::{
    PageLayout,
    transfer::{
        DeviceMemory, Event, Grant, GrantEnd, IpcTransport, LinkConfig, PageIndex, Receiver, ReceiverConfig,
        SlotCounts, Span, TcpTransport, TransferKey, Transports, WriteError, device_checksum,
    },
};
use models::{DecoderSpec, Executor, ExecutorError, PageMove, synthetic};

use crate::{
    compare::same_bits,
    harness::{Case, Context, Failure, Outcome, ensure},
    random::Random,
    setup::{config, failure},
};

/// Arguments of processes at the other end; the folder of sockets is in FOLDER.
pub const WRITER: &str = "write-pages";
pub const RECEIVER: &str = "receive-pages";
const FOLDER: &str = "GPU_TEST_FOLDER";

const PAGES: u32 = 40;
/// Pages of the pool that are pushed; the rest is for those that come in.
const SOURCES: u32 = 32;
const SLOTS: u32 = 8;
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "transfer: pages move with the host's checksums", run: moves },
        Case { name: "transfer: no more calls are under way than have room", run: crowded },
        Case { name: "transfer: pages from another host go by device memory", run: by_the_host },
        Case { name: "transfer: another process pushes, or dies of it", run: writers },
        Case { name: "transfer: a receiver that dies harms no writer", run: receivers },
    ]
}

/// An executor whose pool holds the same random numbers in every process.
fn engine() -> Result<CudaExecutor, Failure> {
    let spec = DecoderSpec { layers: 3, vocab_size: 1000, ..synthetic::qwen3_0_6b_spec() };
    let executor = CudaExecutor::dummy(&spec, &config(2, 64, KvBudget::Pages(PAGES)))?;
    executor.fill_kv()?;
    Ok(executor)
}

fn page(executor: &mut CudaExecutor, page: u32) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; executor.spec().kv.page_bytes()];
    executor.read_page(page, &mut bytes).map_err(failure)?;
    Ok(bytes)
}

fn moves(_: &Context, random: &mut Random) -> Outcome {
    const COUNT: usize = 20;
    let mut executor = engine()?;
    let bytes = executor.spec().kv.page_bytes() as u64;
    let slab = executor.device().shared_memory().allocate(COUNT as u64 * bytes).map_err(failure)?;
    let order = random.shuffled(PAGES as usize);
    let (from, to) = order.split_at(COUNT);
    let at = |index: usize| index as u64 * bytes;
    let mut moves: Vec<PageMove> = (0..COUNT)
        .map(|index| PageMove {
            page: from[index],
            address: slab.address().at(at(index)).0,
            seed: random.word(),
        })
        .collect();
    let out = executor.push_pages(&moves).and_then(|copying| copying.wait()).map_err(failure)?;
    let spans: Vec<Span> =
        moves.iter().enumerate().map(|(index, of)| Span { at: at(index), bytes, seed: of.seed }).collect();
    let there = slab.checksums(&spans).map_err(failure)?;
    moves.iter_mut().zip(to).for_each(|(of, &page)| of.page = page);
    let into = executor.pull_pages(&moves).and_then(|copying| copying.wait()).map_err(failure)?;
    for index in 0..COUNT {
        let (old, new) = (page(&mut executor, from[index])?, page(&mut executor, to[index])?);
        same_bits("a page that went out and in", &old, &new)?;
        let host = device_checksum(moves[index].seed, &old);
        let all = [out[index], there[index], into[index]];
        ensure(all == [host; 3], || format!("checksums {all:x?}, the host's is {host:x}"))?;
    }
    let beyond = PageMove { page: PAGES, ..moves[0] };
    ensure(executor.push_pages(&[beyond]).is_err(), || "a page that is not there was pushed".into())?;
    ensure(slab.checksums(&[Span { at: at(COUNT), bytes: 16, seed: 0 }]).is_err(), || {
        "read beyond the slab".into()
    })?;
    Ok(format!("{COUNT} pages of {bytes} bytes"))
}

fn crowded(_: &Context, _: &mut Random) -> Outcome {
    let mut executor = engine()?;
    let room = executor.device().shared_memory().room(executor.spec().kv.page_bytes()).map_err(failure)?;
    let moves = [PageMove { page: 3, address: room.address().0, seed: 7 }];
    let mut under_way = Vec::new();
    while executor.has_room() {
        under_way.push(executor.push_pages(&moves).map_err(failure)?);
        ensure(under_way.len() < 1000, || "there is room without an end".into())?;
    }
    let refused = executor.push_pages(&moves);
    ensure(matches!(refused, Err(ExecutorError::Batch(_))), || "pushed without room".into())?;
    let most = under_way.len();
    under_way.pop();
    ensure(executor.has_room(), || "a call that is over keeps its room".into())?;
    under_way.push(executor.push_pages(&moves).map_err(failure)?);
    let host = device_checksum(7, &page(&mut executor, 3)?);
    for copying in under_way {
        let sums = copying.wait().map_err(failure)?;
        ensure(sums == [host], || format!("checksums {sums:x?}, the host's is {host:x}"))?;
    }
    same_bits("a page on the host", room.bytes(), &page(&mut executor, 3)?)?;
    Ok(format!("{most} calls at once"))
}

fn layout(executor: &CudaExecutor) -> PageLayout {
    let spec = executor.spec();
    let (revision, name) = ("test".to_owned(), spec.kv.name.clone());
    PageLayout {
        revision,
        name,
        page_size: spec.page_size,
        layers: spec.kv.layers,
        layer_bytes: spec.kv.layer_bytes,
    }
}

fn transports(executor: &CudaExecutor, folder: &Path) -> Transports {
    let link = LinkConfig::new(TransferKey::derive(b"test"));
    let memory = Arc::new(executor.device().shared_memory());
    Transports(vec![Box::new(IpcTransport::new(link, folder, memory))])
}

fn receiver(
    executor: &CudaExecutor,
    transports: &Transports,
) -> Result<(Receiver, mpsc::Receiver<Event>), Failure> {
    let (sender, events) = mpsc::channel();
    let config =
        ReceiverConfig { layout: layout(executor), others: Vec::new(), slots: SLOTS, slots_per_grant: SLOTS };
    let on_event = move |event| drop(sender.send(event));
    let receiver = Receiver::start(config, &transports.0, on_event).map_err(failure)?;
    Ok((receiver, events))
}

/// A process at the other end.
struct Other {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(role: &str, folder: &Path) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe().map_err(failure)?)
            .arg(role)
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failure)?;
        let says = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Ok(Self { child, says })
    }

    fn tell(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.child.stdin.as_mut().expect("it is piped"), "{line}").map_err(failure)
    }

    /// The rest of its next line that begins so.
    fn hear(&mut self, beginning: &str) -> Result<String, Failure> {
        loop {
            let line =
                self.says.next().ok_or_else(|| failure("the other process ended"))?.map_err(failure)?;
            if let Some(rest) = line.strip_prefix(beginning) {
                return Ok(rest.to_owned());
            }
        }
    }

    fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().map_err(failure)?;
        self.child.wait().map_err(failure).map(drop)
    }
}

/// Pushes window after window of the pool's first pages, for as long as the grant has some.
fn push(executor: &mut CudaExecutor, grant: &Grant, transports: &Transports) -> Result<(), String> {
    let mut writer = transports.open(grant, &layout(executor)).map_err(|error| error.to_string())?;
    let window = writer.window();
    let device = writer.device().ok_or("no device memory")?;
    for first in (0..grant.pages).step_by(window as usize) {
        let mut moves = Vec::new();
        for index in first..grant.pages.min(first + window) {
            let place = device.place(PageIndex(index)).map_err(|error| error.to_string())?;
            let place = place.ok_or("taken before it was pushed")?;
            moves.push(PageMove { page: index % SOURCES, address: place.address.0, seed: place.seed });
        }
        let copying = executor.push_pages(&moves).map_err(|error| error.to_string())?;
        let sums = copying.wait().map_err(|error| error.to_string())?;
        let pages: Vec<_> = (first..).map(PageIndex).zip(sums).collect();
        device.stored(&pages).map_err(|error| error.to_string())?;
    }
    writer.finish().map_err(|error| error.to_string())
}

fn folder_of_parent() -> Result<std::path::PathBuf, String> {
    std::env::var_os(FOLDER).map(Into::into).ok_or_else(|| format!("{FOLDER} is not set"))
}

/// Pushes the grants that come on standard input.
pub fn write_as_child(_: &Context) -> Result<(), String> {
    let mut executor = engine().map_err(|Failure(why)| why)?;
    let transports = transports(&executor, &folder_of_parent()?);
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let grant = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        push(&mut executor, &grant, &transports)?;
        println!("done");
    }
    Ok(())
}

/// Lends slots, and says so on standard output.
pub fn receive_as_child(_: &Context) -> Result<(), String> {
    let executor = engine().map_err(|Failure(why)| why)?;
    let transports = transports(&executor, &folder_of_parent()?);
    let (receiver, _events) = receiver(&executor, &transports).map_err(|Failure(why)| why)?;
    let grant = receiver.grant(SLOTS, "writer").map_err(|error| error.to_string())?;
    println!("grant {}", serde_json::to_string(&grant).map_err(|error| error.to_string())?);
    std::thread::sleep(PATIENCE);
    Ok(())
}

/// Takes `pages` pages into the pool and compares them with what every pool holds.
fn take(executor: &mut CudaExecutor, events: &mpsc::Receiver<Event>, pages: u32) -> Result<(), Failure> {
    for _ in 0..pages {
        let Event::Landed(landed) = events.recv_timeout(PATIENCE).map_err(failure)? else {
            return Err(failure("the transfer ended early"));
        };
        let address = landed.address().ok_or_else(|| failure("it landed on the host"))?;
        let into = PageMove { page: SOURCES, address: address.0, seed: 0 };
        executor.pull_pages(&[into]).and_then(|copying| copying.wait()).map_err(failure)?;
        let source = landed.index().0 % SOURCES;
        same_bits("a page from elsewhere", &page(executor, SOURCES)?, &page(executor, source)?)?;
    }
    Ok(())
}

fn end(events: &mpsc::Receiver<Event>) -> Result<GrantEnd, Failure> {
    loop {
        if let Event::Ended { end, .. } = events.recv_timeout(PATIENCE).map_err(failure)? {
            return Ok(end);
        }
    }
}

fn all_free(receiver: &Receiver) -> Result<Duration, Failure> {
    let (began, free) = (Instant::now(), SlotCounts { free: SLOTS, ..SlotCounts::default() });
    while receiver.counts() != free {
        ensure(began.elapsed() < PATIENCE, || format!("{:?}", receiver.counts()))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(began.elapsed())
}

fn by_the_host(_: &Context, _: &mut Random) -> Outcome {
    let mut executor = engine()?;
    let link = LinkConfig::new(TransferKey::derive(b"test"));
    let transports = Transports(vec![Box::new(TcpTransport::new(link, ([127, 0, 0, 1], 0).into(), 2))]);
    let (receiver, events) = receiver(&executor, &transports)?;
    receiver.keep_in(&executor.device().shared_memory()).map_err(failure)?;
    for _ in 0..3 {
        let grant = receiver.grant(SLOTS, "writer").map_err(failure)?;
        let mut writer = transports.open(&grant, &layout(&executor)).map_err(failure)?;
        for index in 0..SLOTS {
            let bytes = page(&mut executor, index % SOURCES)?;
            writer.write(PageIndex(index), 0, &bytes).map_err(failure)?;
        }
        writer.finish().map_err(failure)?;
        take(&mut executor, &events, SLOTS)?;
        ensure(end(&events)? == GrantEnd::Finished, || "it did not finish".into())?;
        all_free(&receiver)?;
    }
    Ok(format!("{SLOTS} pages three times"))
}

fn writers(context: &Context, _: &mut Random) -> Outcome {
    if context.light {
        return Ok("left out: several processes".to_owned());
    }
    let folder = tempfile::tempdir().map_err(failure)?;
    let sockets = folder.path().join("kv");
    let mut executor = engine()?;
    let (receiver, events) = receiver(&executor, &transports(&executor, &sockets))?;
    let grant = |pages| -> Result<String, Failure> {
        serde_json::to_string(&receiver.grant(pages, "writer").map_err(failure)?).map_err(failure)
    };
    let mut other = Other::start(WRITER, &sockets)?;
    other.hear("ready")?;
    // The first transfer maps the slots, the second finds them mapped.
    let mut took = Vec::new();
    for pages in [20, SLOTS] {
        let began = Instant::now();
        other.tell(&grant(pages)?)?;
        take(&mut executor, &events, pages)?;
        other.hear("done")?;
        ensure(end(&events)? == GrantEnd::Finished, || "it did not finish".into())?;
        took.push(began.elapsed());
        all_free(&receiver)?;
    }
    // Killed while it pushes: what landed is good, its slots rest, and the next writer finds them sound.
    other.tell(&grant(100_000)?)?;
    take(&mut executor, &events, 50)?;
    other.kill()?;
    ensure(end(&events)? == GrantEnd::Gone, || "it did not go".into())?;
    ensure(receiver.counts().quarantined > 0, || "slots were free at once".into())?;
    let rested = all_free(&receiver)?;
    let mut next = Other::start(WRITER, &sockets)?;
    next.hear("ready")?;
    next.tell(&grant(20)?)?;
    take(&mut executor, &events, 20)?;
    next.hear("done")?;
    next.kill()?;
    Ok(format!("20 pages in {:?}, then {SLOTS} in {:?}; slots rested {rested:?}", took[0], took[1]))
}

fn receivers(context: &Context, _: &mut Random) -> Outcome {
    if context.light {
        return Ok("left out: several processes".to_owned());
    }
    let folder = tempfile::tempdir().map_err(failure)?;
    let sockets = folder.path().join("kv");
    let mut executor = engine()?;
    let mut other = Other::start(RECEIVER, &sockets)?;
    let grant: Grant = serde_json::from_str(&other.hear("grant ")?).map_err(failure)?;
    let transports = transports(&executor, &sockets);
    let mut writer = transports.open(&grant, &layout(&executor)).map_err(failure)?;
    let device = writer.device().ok_or_else(|| failure("no device memory"))?;
    let place = device.place(PageIndex(0)).map_err(failure)?.ok_or_else(|| failure("no place"))?;
    let moves = [PageMove { page: 0, address: place.address.0, seed: place.seed }];
    executor.push_pages(&moves).and_then(|copying| copying.wait()).map_err(failure)?;
    other.kill()?;
    let sums = executor.push_pages(&moves).and_then(|copying| copying.wait()).map_err(failure)?;
    let told = device.stored(&[(PageIndex(0), sums[0])]).and_then(|()| writer.finish());
    ensure(matches!(told, Err(WriteError::Gone(_) | WriteError::Revoked)), || format!("{told:?}"))?;
    page(&mut executor, 0)?;
    Ok("its memory stays until the writer lets go of it".to_owned())
}
