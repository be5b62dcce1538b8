//! Mutates valid bodies and decodes them as every message: no panic, no allocation out of proportion to the body, and
//! what is accepted encodes again.
//!
//! `STATOR_FUZZ_SECONDS` (default 5) bounds the time, `STATOR_FUZZ_SEED` (default 1) picks the mutations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

#[path = "../../gpu/formats/tests/fuzz_readers/allocations.rs"]
mod allocations;
#[path = "../../gpu/formats/tests/fuzz_readers/mutate.rs"]
mod mutate;

use std::{
    env,
    time::{Duration, Instant},
};

use bytes::Bytes;
use messages::{
    Attempt, Fault, FaultCode, InstanceId, Pool, RequestId, Role, RunId, codec,
    control::{Attach, Cancel, Control},
    frame::{Alive, Body, End, Frame, Pulse, TextBatch, TextDelta, TokenBatch, TokenDelta, TokenLogprobs},
    generate::{ChoiceJournal, Generate, Journal, TextOptions, ToTokenizer},
    input::{Chat, Input, Json},
    kv::{BlockIds, KvChange, KvEvents, KvSnapshot},
    lease::Lease,
    load::Load,
    prefill::{PrefillNews, PrefillTask, TaskPulse},
    submit::{ChoiceStart, Custody, Routing, Sampling, Submit},
};
use mutate::Random;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes a decoder may hold for each byte of a body (a vector of empty maps is the worst case), and at all.
const ALLOCATED_PER_BYTE: usize = 512;
const ALLOCATED_ALWAYS: usize = 64 << 10;

fn corpus() -> Vec<Bytes> {
    let instance: InstanceId = "decode-1".parse().unwrap();
    let (request, attempt, run) = (RequestId::mint(), Attempt::FIRST, Some(RunId(7)));
    let ids = [1u32, 2, 70_000].as_slice();
    let chat = Chat {
        messages: Json(Bytes::from_static(b"[{\"role\":\"user\",\"content\":\"hi\"}]")),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: false,
    };
    let generate = Generate {
        input: Input::Chat(chat),
        n: 2,
        sampling: Sampling { stop_ids: vec![2], logit_bias: vec![(5, -1.0)], ..Sampling::default() },
        max_tokens: Some(16),
        text: TextOptions { stop: vec!["\n\n".to_owned()], ..TextOptions::default() },
        score_prompt_from: None,
        priority: 0,
        cache_salt: Some("salt".to_owned()),
        routing: Routing { session: Some("s".to_owned()), pin: Some(instance.clone()), tenant: None },
        ingress: instance.clone(),
        journal: Some(Journal {
            prompt: ids.into(),
            choices: vec![ChoiceJournal { index: 0, output: ids.into(), delivered: 9 }],
        }),
        attach: None,
        avoid: vec![instance.clone()],
        deaths: 1,
    };
    let submit = Submit {
        run,
        pool: Pool::of_model("m", "00"),
        prompt: ids.into(),
        choices: vec![ChoiceStart { index: 0, output: ids.into() }],
        sampling: Sampling::default(),
        max_tokens: 4,
        open_ended: true,
        score_prompt_from: Some(1),
        priority: 1,
        cache_salt: None,
        routing: Routing::default(),
        dispatch: Some((instance.clone(), 7)),
        prefill: Some(instance.clone()),
        prefill_patience_ms: 500,
        tokenizer: instance.clone(),
        ingress: instance.clone(),
        avoid: Vec::new(),
        deaths: 2,
    };
    let logprobs = vec![TokenLogprobs { id: 1, logprob: Some(-0.5), top: vec![(1, -0.5), (2, -1.5)] }];
    let delta = TokenDelta { choice: 0, at: 3, ids: ids.into(), logprobs, end: Some(End::StopToken(2)) };
    let text = TextDelta {
        choice: 0,
        at: 3,
        ids: ids.into(),
        offset: 5,
        text: "text".to_owned(),
        logprobs: Vec::new(),
        end: Some(End::Length),
    };
    let alive = Alive { request, attempt, run, reached: vec![(0, 3)], quiet_ms: 1, handed_on: true };
    let tokens = TokenBatch {
        from: instance.clone(),
        role: Role::Decode,
        number: 3,
        sampled_us: 4,
        frames: vec![Frame { request, attempt, run, body: Body::Delta(delta) }],
        alive: vec![alive],
        pulse: Some(Pulse { step: 1, age_ms: 2, bound_ms: 3 }),
    };
    let texts = TextBatch {
        from: instance.clone(),
        role: Role::Tokenizer,
        number: 3,
        sampled_us: 4,
        frames: vec![
            Frame { request, attempt, run, body: Body::Delta(text) },
            Frame {
                request,
                attempt,
                run: None,
                body: Body::Unanswered { engine: instance.clone(), prefill: Some(instance.clone()) },
            },
            Frame { request, attempt, run, body: Body::Failed(Fault::new(FaultCode::Internal, "why")) },
        ],
        alive: Vec::new(),
        pulse: None,
    };
    let cancel = Control::Cancel(Cancel { request, attempt, run, choice: Some(1) });
    let attach =
        Control::Attach(Attach { request, run: RunId(7), inbox: instance.clone(), from: vec![(0, 3)] });
    let blocks = || BlockIds::from_iter([1, u64::MAX]);
    let events = KvEvents {
        instance: instance.clone(),
        epoch: 9,
        number: 1,
        changes: vec![KvChange::Stored(blocks()), KvChange::Removed(blocks()), KvChange::Cleared],
    };
    let task = PrefillTask {
        run: RunId(7),
        prompt: ids.into(),
        cache_salt: None,
        held_blocks: 1,
        priority: 0,
        decode: instance.clone(),
        dispatch: Some((instance.clone(), 5)),
        layout: "f16".to_owned(),
        numerics_class: "cpu1".to_owned(),
        accepts: vec!["bf16".to_owned()],
    };
    vec![
        codec::encode(&events),
        codec::encode(&KvSnapshot { instance: instance.clone(), epoch: 9, next: 2, blocks: blocks() }),
        codec::encode(&task),
        codec::encode(&Control::Prefill(PrefillNews::WantSlots {
            run: RunId(7),
            blocks: 2,
            cached_blocks: 1,
            layout: Some("bf16".to_owned()),
        })),
        codec::encode(&Control::Prefill(PrefillNews::Pulse {
            tasks: vec![TaskPulse { run: RunId(7), remaining_ms: 20 }],
        })),
        codec::encode(&ToTokenizer::Generate(Box::new(generate))),
        codec::encode(&submit),
        codec::encode(&tokens),
        codec::encode(&texts),
        codec::encode(&cancel),
        codec::encode(&attach),
        codec::encode(&Custody::Accepted { instance }),
    ]
}

/// Decodes as `T`, holding it to its allowance; whether it was accepted.
fn reads<T: Serialize + DeserializeOwned>(body: &[u8]) -> bool {
    let (result, peak) = allocations::peak_of(|| codec::decode::<T>(body));
    let allowance = ALLOCATED_PER_BYTE * body.len() + ALLOCATED_ALWAYS;
    assert!(peak <= allowance, "{peak} bytes allocated for a body of {}", body.len());
    result.map(|message| codec::encode(&message)).is_ok()
}

fn reads_as_any(body: &[u8]) -> bool {
    let accepted = [
        reads::<ToTokenizer>(body),
        reads::<Submit>(body),
        reads::<TokenBatch>(body),
        reads::<TextBatch>(body),
        reads::<Control>(body),
        reads::<Custody>(body),
        reads::<Lease>(body),
        reads::<Load>(body),
        reads::<KvEvents>(body),
        reads::<KvSnapshot>(body),
        reads::<PrefillTask>(body),
    ];
    accepted.contains(&true)
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn bodies_of_every_message() {
    let (corpus, seed) = (corpus(), setting("STATOR_FUZZ_SEED", 1));
    assert!(corpus.iter().all(|body| reads_as_any(body)), "a body of the corpus is refused");
    let end = Instant::now() + Duration::from_secs(setting("STATOR_FUZZ_SECONDS", 5)) / 2;
    let (mut iteration, mut accepted) = (0u64, 0u64);
    while iteration < 1000 || Instant::now() < end {
        let mut random = Random::new(seed, iteration);
        let mut body = corpus[random.below(corpus.len())].to_vec();
        mutate::mutate(&mut body, &mut random);
        accepted += u64::from(reads_as_any(&body));
        iteration += 1;
    }
    println!("{iteration} bodies, {accepted} accepted");
    assert!(
        accepted > 0 && accepted < iteration,
        "mutations that are all accepted or all refused test little"
    );
}
