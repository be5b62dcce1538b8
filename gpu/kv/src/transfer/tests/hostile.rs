//! Peers that know the key and break the rules, and peers that do not.

use std::{
    io::Read,
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use super::*;
use crate::transfer::{bodies::Bodies, checksum::checksum, handshake, socket::Socket, wire::Frame};

/// A connection under a grant, to send what no writer would.
pub(super) fn connect(scheme: Scheme, grant: &Grant) -> Socket {
    let address = grant.addresses[0].split().1;
    let (descriptor, bodies) = match scheme {
        Scheme::Shm => (OwnedFd::from(UnixStream::connect(address).unwrap()), Bodies::Shared),
        Scheme::Ipc => (OwnedFd::from(UnixStream::connect(address).unwrap()), Bodies::Device),
        Scheme::Tcp => (TcpStream::connect(address.trim_start_matches('/')).unwrap().into(), Bodies::Inline),
    };
    let socket = Socket::from(descriptor);
    handshake::ask(&socket, grant.epoch, &link(b"secret"), bodies).unwrap();
    socket
}

fn frame(epoch: Epoch, index: u32, layer: u32, bytes: &[u8]) -> Frame {
    let index = PageIndex(index);
    let checksum = checksum(epoch, index, layer, bytes);
    Frame::Layers { epoch, index, layer, length: bytes.len() as u32, checksum }
}

#[test]
fn frames_that_no_writer_sends_end_the_grant() {
    let bytes = vec![0; LAYER_BYTES as usize];
    let with = |change: fn(&mut Epoch, &mut u32, &mut u32, &mut u32)| {
        move |mut epoch: Epoch| {
            let (mut index, mut layer, mut length) = (0, 0, LAYER_BYTES);
            change(&mut epoch, &mut index, &mut layer, &mut length);
            Frame::Layers { epoch, index: PageIndex(index), layer, length, checksum: 0 }
        }
    };
    let cases = [
        ("another epoch", with(|epoch, _, _, _| epoch.0 ^= 1)),
        ("a page beyond the grant", with(|_, index, _, _| *index = 9)),
        ("a page beyond the window", with(|_, index, _, _| *index = 2)),
        ("no such layer", with(|_, _, layer, _| *layer = LAYERS)),
        ("a layer that overflows", with(|_, _, layer, _| *layer = u32::MAX)),
        ("no whole layer", with(|_, _, _, length| *length -= 1)),
        ("no layer at all", with(|_, _, _, length| *length = 0)),
        ("more than a page", with(|_, _, _, length| *length = LAYER_BYTES * (LAYERS + 1))),
        ("the largest length", with(|_, _, _, length| *length = LAYER_BYTES * (u32::MAX / LAYER_BYTES))),
    ];
    for scheme in ALL {
        for (what, frame) in &cases {
            let bench = Bench::new(scheme, 2);
            let grant = bench.receiver.grant(9, "prefill-1").unwrap();
            let socket = connect(scheme, &grant);
            socket.write(&frame(grant.epoch).encode(), &bytes).unwrap();
            assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Violation), "{what} over {scheme:?}");
            drop(socket);
            bench.all_free();
        }
    }
}

#[test]
fn bytes_that_changed_on_the_way_do_not_land() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 1);
        let grant = bench.receiver.grant(1, "prefill-1").unwrap();
        let socket = connect(scheme, &grant);
        // Shared memory holds zeros, whatever the frame says.
        let mut bytes = page_of(1, PageIndex(0));
        let frame = frame(grant.epoch, 0, 0, &bytes);
        bytes[5000] ^= 1;
        let inline = if scheme == Scheme::Tcp { bytes.as_slice() } else { &[] };
        socket.write(&frame.encode(), inline).unwrap();
        assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Corrupt));
        drop(socket);
        bench.all_free();
    }
}

#[test]
fn bytes_for_another_place_do_not_land() {
    let bench = Bench::new(Scheme::Tcp, 2);
    let grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let socket = connect(Scheme::Tcp, &grant);
    let bytes = layer_of(1, PageIndex(0), 0);
    let Frame::Layers { epoch, layer, length, checksum, .. } = frame(grant.epoch, 0, 0, &bytes) else {
        unreachable!("frame makes layers")
    };
    let moved = Frame::Layers { epoch, index: PageIndex(1), layer, length, checksum };
    socket.write(&moved.encode(), &bytes).unwrap();
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Corrupt));
}

#[test]
fn frames_sent_twice_land_once() {
    let bench = Bench::new(Scheme::Tcp, 1);
    let grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let socket = connect(Scheme::Tcp, &grant);
    let send = |index: u32, layer: u32| {
        let bytes = layer_of(1, PageIndex(index), layer);
        socket.write(&frame(grant.epoch, index, layer, &bytes).encode(), &bytes).unwrap();
    };
    for layer in [0, 0, 1, 0, 1, 2, 2] {
        send(0, layer);
    }
    drop(bench.landed());
    for (index, layer) in [(0, 1), (1, 0), (0, 0), (1, 1), (1, 2), (1, 0)] {
        send(index, layer);
    }
    assert!(bench.landed().bytes() == page_of(1, PageIndex(1)));
    socket.write(&Frame::Close { epoch: grant.epoch }.encode(), &[]).unwrap();
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Finished));
    bench.all_free();
}

#[test]
fn a_frame_cut_short_ends_the_grant() {
    for scheme in ALL {
        let bytes = page_of(1, PageIndex(0));
        for cut in [1, Frame::BYTES - 1, Frame::BYTES, Frame::BYTES + 5000] {
            let bench = Bench::new(scheme, 1);
            let grant = bench.receiver.grant(1, "prefill-1").unwrap();
            let socket = connect(scheme, &grant);
            let mut sent = frame(grant.epoch, 0, 0, &bytes).encode().to_vec();
            sent.extend_from_slice(&bytes);
            socket.write(&sent[..cut], &[]).unwrap();
            drop(socket);
            let (epoch, end) = bench.ended();
            // In shared memory the whole header is a whole frame, of bytes that were never stored.
            let whole = scheme != Scheme::Tcp && cut >= Frame::BYTES;
            let expected = if whole { GrantEnd::Corrupt } else { GrantEnd::Gone };
            assert_eq!((epoch, end), (grant.epoch, expected));
            bench.all_free();
        }
    }
}

#[test]
fn a_network_writer_paused_within_a_frame_holds_no_slot_of_a_revoked_grant() {
    let bench = Bench::new(Scheme::Tcp, 1);
    let grant = bench.receiver.grant(1, "prefill-1").unwrap();
    let paused = connect(Scheme::Tcp, &grant);
    let bytes = page_of(1, PageIndex(0));
    paused.write(&frame(grant.epoch, 0, 0, &bytes).encode(), &bytes[..100]).unwrap();
    bench.receiver.revoke(grant.epoch);
    bench.all_free();
    let (_, mut writer) = bench.open(1);
    writer.write(PageIndex(0), 0, &layer_of(2, PageIndex(0), 0)).unwrap();
    // The connection may be reset by now; what counts is where the bytes do not go.
    let _ = paused.write(&bytes[100..], &[]);
    writer.write(PageIndex(0), 1, &page_of(2, PageIndex(0))[LAYER_BYTES as usize..]).unwrap();
    assert!(bench.landed().bytes() == page_of(2, PageIndex(0)));
}

#[test]
fn one_broken_stream_ends_the_grant_for_all() {
    let bench = Bench::new(Scheme::Tcp, 2);
    let grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let (first, second) = (connect(Scheme::Tcp, &grant), connect(Scheme::Tcp, &grant));
    drop(second);
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Gone));
    bench.all_free();
    assert!(first.read(&mut [std::io::IoSliceMut::new(&mut [0; 8])]).is_err(), "the other stream lives on");
}

#[test]
fn a_stranger_that_says_nothing_is_cut_off() {
    let hasty = LinkConfig { handshake: Duration::from_millis(20), ..link(b"secret") };
    let bench = Bench::with(Scheme::Tcp, 1, hasty);
    let grant = bench.receiver.grant(1, "prefill-1").unwrap();
    let address = grant.addresses[0].split().1.trim_start_matches('/');
    let mut silent = TcpStream::connect(address).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = Vec::new();
    silent.read_to_end(&mut said).unwrap();
    assert!(said.len() < 64, "only a challenge is for everybody");
}

#[test]
fn a_network_writer_that_falls_silent_is_gone() {
    let hasty = LinkConfig { idle: Duration::from_millis(20), ..link(b"secret") };
    let bench = Bench::with(Scheme::Tcp, 1, hasty);
    let (grant, _silent) = bench.open(1);
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Gone));
    bench.all_free();
}
