//! What must stay true of bodies on the wire, whatever is added to them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use bytes::Bytes;
use messages::{
    Attempt, Fault, FaultCode, InstanceId, RequestId, Role, RunId, TokenIds, codec,
    frame::{Batch, Body, Frame, TokenBatch, TokenDelta},
    submit::Sampling,
};
use serde::Serialize;

fn batch(ids: &[u32]) -> TokenBatch {
    let delta = TokenDelta { choice: 0, at: 3, ids: ids.into(), logprobs: Vec::new(), end: None };
    let body = Body::Delta(delta);
    let frame =
        Frame { request: RequestId::mint(), attempt: Attempt::FIRST, run: Some(RunId(u64::MAX)), body };
    let from: InstanceId = "decode-1".parse().unwrap();
    Batch {
        from,
        role: Role::Decode,
        number: 1,
        sampled_us: 1,
        frames: vec![frame],
        alive: Vec::new(),
        pulse: None,
    }
}

#[test]
fn token_ids_take_four_bytes_each() {
    let empty = codec::encode(&batch(&[])).len();
    let full = codec::encode(&batch(&[u32::MAX; 256])).len();
    assert!(full - empty < 256 * 4 + 16, "{empty} {full}");
}

#[test]
fn a_batch_reads_back() {
    let sent = batch(&[1, 2, 3]);
    assert_eq!(codec::decode::<TokenBatch>(&codec::encode(&sent)).unwrap(), sent);
}

#[test]
fn a_reader_ignores_fields_it_does_not_know_and_fills_in_those_it_misses() {
    #[derive(Serialize)]
    struct Newer<'a> {
        temperature: f32,
        invented_later: &'a str,
    }
    let read: Sampling =
        codec::decode(&codec::encode(&Newer { temperature: 0.5, invented_later: "x" })).unwrap();
    assert_eq!(read, Sampling { temperature: 0.5, ..Sampling::default() });
}

#[test]
fn a_fault_of_a_newer_version_is_still_a_fault() {
    #[derive(Serialize)]
    struct Newer {
        code: &'static str,
        message: &'static str,
    }
    let fault: Fault =
        codec::decode(&codec::encode(&Newer { code: "invented_later", message: "m" })).unwrap();
    assert_eq!(fault, Fault::new(FaultCode::Unknown, "m"));
}

#[test]
fn garbage_is_an_error_that_names_the_message() {
    for garbage in [&b""[..], b"\xff\xff", b"\x81\xa1x", &[0x92; 64]] {
        let error = codec::decode::<TokenBatch>(garbage).unwrap_err().to_string();
        assert!(error.starts_with("malformed Batch"), "{error}");
    }
    let torn: Result<TokenIds, _> = codec::decode(&codec::encode(&Bytes::from_static(b"abc")));
    assert!(torn.is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..512)) {
        let _ = codec::decode::<TokenBatch>(&bytes);
        let _ = codec::decode::<messages::generate::ToTokenizer>(&bytes);
        let _ = codec::decode::<messages::control::Control>(&bytes);
        let _ = codec::decode::<messages::lease::Lease>(&bytes);
    }
}
