//! Encoding and streaming decode of about a thousand tokens with SmolLM2's vocabulary (scripts/model fetches it).

use std::sync::{Arc, LazyLock};

use divan::{Bencher, black_box};
use formats::Gguf;
use messages::{frame::TokenDelta, generate::TextOptions};
use tokenizer::{
    decode::{Choice, Pieces, Settings, StopStrings},
    encode::{Encoder, Words},
};
use tokenizers::Tokenizer;

const CACHED: &str = ".cache/stator/models/SmolLM2-135M-Instruct.Q4_1.gguf";
const VOCABULARY: [&str; 24] = [
    "the",
    "quick",
    "network",
    "of",
    "latency",
    "and",
    "scheduler",
    "request",
    "is",
    "a",
    "token",
    "measured",
    "with",
    "throughput",
    "every",
    "pipeline",
    "2026",
    "3.14",
    "don't",
    "(see",
    "below)",
    "results,",
    "however.",
    "\n\n",
];

static ORACLE: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let file = std::env::home_dir().unwrap_or_default().join(CACHED);
    let json =
        Gguf::open(&file).and_then(|gguf| gguf.tokenizer_json()).expect("scripts/model fetches the model");
    Arc::new(Tokenizer::from_bytes(json).expect("the tokenizer is well formed"))
});

/// A text of a thousand words or so that no cache of segments knows.
fn text(seed: usize) -> String {
    let mut state = seed as u64;
    let mut text = format!("{seed} ");
    for _ in 0..800 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text += VOCABULARY[(state >> 33) as usize % VOCABULARY.len()];
        text.push(' ');
    }
    text
}

fn main() {
    divan::main();
}

#[divan::bench]
fn encode_1000_by_tokenizers(bencher: Bencher<'_, '_>) {
    let mut seed = 0;
    bencher
        .with_inputs(|| {
            seed += 1;
            text(seed)
        })
        .bench_local_values(|text| ORACLE.encode_fast(text, false).map(|encoding| encoding.len()));
}

#[divan::bench]
fn encode_1000(bencher: Bencher<'_, '_>) {
    let encoder = Encoder::new(ORACLE.clone(), 0);
    let (mut words, mut seed) = (Words::default(), 0);
    bencher
        .with_inputs(|| {
            seed += 1;
            text(seed)
        })
        .bench_local_values(|text| encoder.encode(&text, false, &mut words).map(|encoded| encoded.ids.len()));
}

#[divan::bench]
fn encode_1000_seen_before(bencher: Bencher<'_, '_>) {
    let encoder = Encoder::new(ORACLE.clone(), 1 << 20);
    let (mut words, text) = (Words::default(), text(7));
    bencher
        .bench_local(|| encoder.encode(black_box(&text), false, &mut words).map(|encoded| encoded.ids.len()));
}

#[divan::bench(args = [0, 2])]
fn decode_1000(bencher: Bencher<'_, '_>, stops: usize) {
    let pieces = Pieces::new(ORACLE.clone());
    let ids =
        ORACLE.encode_fast(text(7), false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
    let options = TextOptions { stop: vec!["###".to_owned(); stops], ..TextOptions::default() };
    let stops = StopStrings::new(&options.stop);
    bencher.bench_local(|| {
        let settings = Settings { text: &options, stops: &stops, min_tokens: 0, begins: false };
        let mut choice = Choice::new(0, &pieces, &settings);
        for (at, id) in ids.iter().enumerate() {
            let ids = [*id].as_slice().into();
            let frame = TokenDelta { choice: 0, at: at as u32, ids, logprobs: Vec::new(), end: None };
            black_box(choice.accept(&pieces, frame));
        }
    });
}
