//! Mutates what a writer sends after it was let in: no panic, no allocation out of proportion, nothing lands that was
//! not pushed, and every slot comes back.
//!
//! `STATOR_FUZZ_SECONDS` (default 5) bounds the time, `STATOR_FUZZ_SEED` (default 1) picks the mutations.

#[path = "../../../../formats/tests/fuzz_readers/allocations.rs"]
mod allocations;
#[path = "../../../../formats/tests/fuzz_readers/mutate.rs"]
mod mutate;

use std::{env, os::unix::net::UnixStream, sync::atomic::AtomicU32, sync::atomic::Ordering, thread};

use mutate::Random;

use super::*;
use crate::transfer::{
    arena::Form, bodies::Bodies, checksum::checksum, connection, handshake, socket::Socket, wire::Frame,
};

/// Bytes a receiving thread may hold, whatever a writer sends.
const ALLOCATED: usize = 64 << 10;
const PAGES: u32 = 3;
const SLOTS: u32 = 2;

/// A whole grant as an honest writer sends it.
fn honest(epoch: Epoch) -> Vec<u8> {
    let mut sent = Vec::new();
    for index in (0..PAGES).map(PageIndex) {
        for layer in 0..LAYERS {
            let bytes = layer_of(3, index, layer);
            let checksum = checksum(epoch, index, layer, &bytes);
            sent.extend(Frame::Layers { epoch, index, layer, length: LAYER_BYTES, checksum }.encode());
            sent.extend(bytes);
        }
    }
    sent.extend(Frame::Close { epoch }.encode());
    sent
}

/// Aims most mutations at a frame's header: bodies are nearly all of the bytes.
fn damage(sent: &mut Vec<u8>, random: &mut Random) {
    let frame = Frame::BYTES + LAYER_BYTES as usize;
    let at = (frame * random.below(sent.len() / frame)).min(sent.len());
    let mut tail = sent.split_off(at);
    let mut header = tail.drain(..Frame::BYTES.min(tail.len())).collect();
    mutate::mutate(if random.below(4) == 0 { &mut tail } else { &mut header }, random);
    sent.append(&mut header);
    sent.append(&mut tail);
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn damaged_frames() {
    let (seed, seconds) = (setting("STATOR_FUZZ_SEED", 1), setting("STATOR_FUZZ_SECONDS", 5));
    let landed = Arc::new(AtomicU32::new(0));
    let count = landed.clone();
    let on_event = move |event| {
        if let Event::Landed(page) = event {
            assert!(page.bytes() == page_of(3, page.index()), "a page landed that was not pushed");
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let forms = vec![Form { layout: layout(), rearrangement: None }];
    let arena = Arc::new(SlotArena::new(forms, SLOTS, SLOTS, Box::new(on_event)).unwrap());
    let end = Instant::now() + Duration::from_secs(seconds) / 2;
    let (mut iteration, mut whole) = (0u64, 0u64);
    while iteration < 200 || Instant::now() < end {
        let (epoch, _) = arena.lend(PAGES, "prefill-1", 0).unwrap();
        let mut random = Random::new(seed, iteration);
        let mut sent = honest(epoch);
        if iteration > 0 {
            damage(&mut sent, &mut random);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            let socket = Socket::from(std::os::fd::OwnedFd::from(theirs));
            handshake::ask(&socket, epoch, &link(b"secret"), Bodies::Inline).unwrap();
            // The receiver hangs up as soon as it has seen enough.
            let _ = socket.write(&sent, &[]);
        });
        let before = landed.load(Ordering::Relaxed);
        let socket = Socket::from(std::os::fd::OwnedFd::from(ours));
        let link = link(b"secret");
        let ((), peak) = allocations::peak_of(|| connection::serve(&socket, &arena, &link, Bodies::Inline));
        assert!(peak <= ALLOCATED, "{peak} bytes allocated");
        drop(socket);
        writer.join().unwrap();
        whole += u64::from(landed.load(Ordering::Relaxed) - before == PAGES);
        arena.revoke(epoch, true);
        assert_eq!(arena.counts(), SlotCounts { free: SLOTS, ..SlotCounts::default() });
        iteration += 1;
    }
    println!("{iteration} grants, {whole} landed whole");
    assert!(whole > 0 && whole < iteration, "mutations that all pass or all fail test little");
}
