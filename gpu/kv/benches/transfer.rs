//! How fast pages travel, against what the machine does at best in the same run: shared memory against copying memory,
//! TCP against a bare loopback connection. Pages are those of SmolLM2-135M: 23,040 bytes a token, 16 tokens.
//!
//! Each end has a core of its own, as processes that share a host should; the way back uses the same two. Every figure
//! ends with the bytes in the receiver's pool: checksums, staging slots and the last copy are included.
//! `cargo bench -p kv --bench transfer -- [ROUNDS] [WAY]`; ways take turns within a round. On a machine with
//! other work the best round says most. WAY leaves out ways whose names lack it.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use kv::{
    PageLayout,
    transfer::{
        Event, KvTransport, LinkConfig, PageIndex, Receiver, ReceiverConfig, ShmTransport, TcpTransport,
        TransferKey, Transports,
    },
};
use rustix::thread::{CpuSet, sched_setaffinity};

const LAYERS: u32 = 30;
const LAYER_BYTES: u32 = 16 * 768;
const PAGE: usize = LAYERS as usize * LAYER_BYTES as usize;
/// Pages of a pool: larger than the last cache of most machines.
const POOL: u32 = 128;
/// Pages of a transfer.
const PAGES: u32 = 4 * POOL;
const SLOTS: u32 = 16;
/// Pages that are computed together, layer by layer.
const CHUNK: u32 = 8;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps this thread, and those it starts, on one of two cores.
fn pin(core: usize) -> Result<(), AnyError> {
    let mut cores = CpuSet::new();
    cores.set(core % 2);
    Ok(sched_setaffinity(None, &cores)?)
}

/// A way for `PAGES` pages to get from one pool to another.
enum Way {
    Memcpy,
    Loopback,
    Transfer { transports: Arc<Transports>, by_layer: bool },
}

fn pool() -> Vec<u8> {
    (0..POOL as usize * PAGE).map(|at| ((at * 31) >> 3) as u8).collect()
}

fn page(pool: &[u8], index: u32) -> &[u8] {
    &pool[(index % POOL) as usize * PAGE..][..PAGE]
}

fn page_mut(pool: &mut [u8], index: u32) -> &mut [u8] {
    &mut pool[(index % POOL) as usize * PAGE..][..PAGE]
}

/// When a direction began, after waiting for the others, and when its last byte had arrived.
type Span = (Instant, Instant);

fn begin(start: &Barrier) -> Instant {
    start.wait();
    Instant::now()
}

fn memcpy(from: &[u8], to: &mut [u8], start: &Barrier) -> Span {
    let began = begin(start);
    for index in 0..PAGES {
        page_mut(to, index).copy_from_slice(page(from, index));
    }
    (began, Instant::now())
}

fn loopback(core: usize, from: &[u8], to: &mut [u8], start: &Barrier) -> Result<Span, AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    sending.set_nodelay(true)?;
    let (mut receiving, _) = listener.accept()?;
    let began = begin(start);
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<(), AnyError> {
            pin(core + 1)?;
            Ok((0..PAGES).try_for_each(|index| sending.write_all(page(from, index)))?)
        });
        (0..PAGES).try_for_each(|index| receiving.read_exact(page_mut(to, index)))?;
        sender.join().map_err(|_| "the sender panicked")??;
        Ok((began, Instant::now()))
    })
}

fn transfer(
    transports: &Transports,
    by_layer: bool,
    core: usize,
    from: &[u8],
    to: &mut [u8],
    start: &Barrier,
) -> Result<Span, AnyError> {
    let layout = PageLayout {
        revision: "r".to_owned(),
        name: "f16".to_owned(),
        page_size: 16,
        layers: LAYERS,
        layer_bytes: LAYER_BYTES,
    };
    let (sender, events) = mpsc::channel();
    let config =
        ReceiverConfig { layout: layout.clone(), others: Vec::new(), slots: SLOTS, slots_per_grant: SLOTS };
    let receiver = Receiver::start(config, &transports.0, move |event| drop(sender.send(event)))?;
    let grant = receiver.grant(PAGES, "bench")?;
    let mut writer = transports.open(&grant, &layout)?;
    let began = begin(start);
    thread::scope(|scope| {
        let pusher = scope.spawn(move || -> Result<(), AnyError> {
            pin(core + 1)?;
            for chunk in (0..PAGES).step_by(CHUNK as usize) {
                if by_layer {
                    for (layer, index) in
                        (0..LAYERS).flat_map(|layer| (0..CHUNK).map(move |page| (layer, chunk + page)))
                    {
                        let at = layer as usize * LAYER_BYTES as usize;
                        writer.write(
                            PageIndex(index),
                            layer,
                            &page(from, index)[at..][..LAYER_BYTES as usize],
                        )?;
                    }
                } else {
                    (chunk..chunk + CHUNK)
                        .try_for_each(|index| writer.write(PageIndex(index), 0, page(from, index)))?;
                }
            }
            Ok(writer.finish()?)
        });
        let mut landed = 0;
        while landed < PAGES {
            match events.recv_timeout(Duration::from_secs(20))? {
                Event::Landed(from) => page_mut(to, from.index().0).copy_from_slice(from.bytes()),
                Event::Ended { end, .. } => return Err(format!("{end:?} after {landed} pages").into()),
            }
            landed += 1;
        }
        pusher.join().map_err(|_| "the pusher panicked")??;
        Ok((began, Instant::now()))
    })
}

/// Gigabytes a second over `directions` at once, each with threads of its own.
fn measure(way: &Way, pools: &mut [(Vec<u8>, Vec<u8>)]) -> Result<f64, AnyError> {
    let (directions, start) = (pools.len(), Barrier::new(pools.len()));
    thread::scope(|scope| {
        let start = &start;
        let pools = pools.iter_mut().enumerate();
        let run = |(core, (from, to)): (usize, &'_ mut (Vec<u8>, Vec<u8>))| -> Result<Span, AnyError> {
            pin(core)?;
            match way {
                Way::Memcpy => Ok(memcpy(from, to, start)),
                Way::Loopback => loopback(core, from, to, start),
                Way::Transfer { transports, by_layer } => {
                    transfer(transports, *by_layer, core, from, to, start)
                }
            }
        };
        let running: Vec<_> = pools.map(|direction| scope.spawn(move || run(direction))).collect();
        let mut spans = Vec::new();
        for thread in running {
            spans.push(thread.join().map_err(|_| "a direction panicked")??);
        }
        let began = spans.iter().map(|(began, _)| *began).min().ok_or("no direction")?;
        let ended = spans.iter().map(|(_, ended)| *ended).max().ok_or("no direction")?;
        Ok((directions * PAGES as usize * PAGE) as f64 / (ended - began).as_secs_f64() / 1e9)
    })
}

fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rounds = arguments.first().map_or(Ok(9), |rounds| rounds.parse::<u32>())?;
    let wanted = arguments.get(1).map_or("", |way| way.as_str());
    let folder = tempfile::tempdir()?;
    let link = LinkConfig::new(TransferKey::derive(b"bench"));
    let over = |transport: Box<dyn KvTransport>, by_layer| Way::Transfer {
        transports: Arc::new(Transports(vec![transport])),
        by_layer,
    };
    let shm = || Box::new(ShmTransport::new(link.clone(), folder.path().join("kv")));
    let tcp = |streams| Box::new(TcpTransport::new(link.clone(), ([127, 0, 0, 1], 0).into(), streams));
    // A name, the way, and the place of what it is compared with.
    let ways = [
        ("memcpy", Way::Memcpy, 0),
        ("shm, layer by layer", over(shm(), true), 0),
        ("shm, whole pages", over(shm(), false), 0),
        ("loopback, bare", Way::Loopback, 3),
        ("tcp, layer by layer", over(tcp(1), true), 3),
        ("tcp, whole pages", over(tcp(1), false), 3),
        ("tcp, 2 streams, layer by layer", over(tcp(2), true), 3),
        ("tcp, 2 streams, whole pages", over(tcp(2), false), 3),
    ];
    for directions in [1, 2] {
        let mut pools: Vec<_> = (0..directions).map(|_| (pool(), pool())).collect();
        let mut figures = vec![Vec::new(); ways.len()];
        for _ in 0..rounds {
            for ((_, way, _), figures) in
                ways.iter().zip(&mut figures).filter(|((name, ..), _)| name.contains(wanted))
            {
                pools.iter_mut().for_each(|(_, to)| to.fill(0));
                figures.push(measure(way, &mut pools)?);
                assert!(pools.iter().all(|(from, to)| from == to), "other bytes arrived than were sent");
            }
        }
        println!(
            "{directions} direction(s) at once, {rounds} rounds of {} MB each way; best and median round",
            PAGES as usize * PAGE / 1_000_000
        );
        figures.iter_mut().for_each(|of| of.sort_by(f64::total_cmp));
        for ((name, _, against), of) in ways.iter().zip(&figures).filter(|(_, of)| !of.is_empty()) {
            let share = match (of.last(), figures[*against].last()) {
                (Some(best), Some(whole)) => {
                    format!("best {:3.0} % of {}", 100.0 * best / whole, ways[*against].0)
                }
                _ => String::new(),
            };
            println!("  {name:32} {:6.2} {:6.2} GB/s  {share}", of[of.len() - 1], of[of.len() / 2]);
        }
    }
    Ok(())
}
