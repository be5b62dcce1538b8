//! A forward pass written out plainly over the public API, against the logits of Hugging Face transformers: shows
//! that configuration, weights and rotary frequencies mean what they say.

#[path = "forward/decoder.rs"]
mod decoder;

use decoder::Decoder;
use models::{LayerWeight, RopeScaling, WeightId, fixtures, rope_frequencies};

/// Accepted difference of a logit, as a share of the largest one.
const BOUND: f32 = 5e-5;
/// A mistake must show by this many bounds.
const NOTICED: f32 = 20.0;

/// Largest difference of a logit in all cases, as a share of the largest logit.
fn error(decoder: &Decoder, checkpoint: &fixtures::Checkpoint) -> f32 {
    let mut worst = 0.0f32;
    for case in &checkpoint.cases {
        for (position, logits) in decoder.logits(&case.tokens()).iter().enumerate() {
            for (ours, theirs) in logits.iter().zip(case.logits(position)) {
                worst = worst.max((ours - theirs).abs() / case.max_logit());
            }
        }
    }
    worst
}

#[test]
fn every_checkpoint_computes_the_logits_of_transformers() {
    for (name, checkpoint) in fixtures::checkpoints() {
        let error = error(&Decoder::open(&checkpoint.path), &checkpoint);
        assert!(error < BOUND, "{name}: {error}");
    }
}

#[test]
fn the_checkpoints_notice_mistakes() {
    type Mistake = fn(&mut Decoder);
    let everywhere: [(&str, Mistake); 4] = [
        ("another eps", |decoder| decoder.spec.norm_eps = 1e-6),
        ("another rope base", |decoder| {
            decoder.spec.rope.theta *= 1.1;
            decoder.rope = rope_frequencies(&decoder.spec.rope, decoder.spec.context_length);
        }),
        ("a mask off by one", |decoder| {
            let window = decoder.spec.sliding_window.unwrap_or(decoder::LONGEST_CASE);
            decoder.spec.sliding_window = Some(window - 1);
        }),
        ("swapped key-value heads", |decoder| {
            for (id, weight) in &mut decoder.weights {
                if matches!(id, WeightId::Layer(_, LayerWeight::K | LayerWeight::V)) {
                    let half = weight.len() / 2;
                    weight.rotate_left(half);
                }
            }
        }),
    ];
    let unscaled: Mistake = |decoder| {
        decoder.spec.rope.scaling = RopeScaling::None;
        decoder.rope = rope_frequencies(&decoder.spec.rope, decoder.spec.context_length);
    };
    let here: [(&str, &str, Mistake); 6] = [
        ("llama3_rope", "no rope scaling", unscaled),
        ("linear_rope", "no rope scaling", unscaled),
        ("yarn_rope", "no rope scaling", unscaled),
        ("yarn_rope", "no attention factor", |decoder| decoder.rope.attention_factor = 1.0),
        ("qwen3", "no norm of queries and keys", |decoder| decoder.spec.qk_norm = false),
        ("qwen2", "no biases", |decoder| decoder.spec.qkv_bias = false),
    ];
    let names = fixtures::CHECKPOINTS;
    let all = names.iter().flat_map(|&name| everywhere.map(|(label, mistake)| (name, label, mistake)));
    for (name, label, mistake) in all.chain(here) {
        let checkpoint = fixtures::checkpoint(name);
        let mut decoder = Decoder::open(&checkpoint.path);
        mistake(&mut decoder);
        let error = error(&decoder, &checkpoint);
        assert!(error > NOTICED * BOUND, "{name} does not notice {label}: {error}");
    }
}

#[test]
fn smollm2_from_its_gguf_file_has_the_distributions_of_transformers() {
    /// This forward pass is slow; blocks, row order and names show in a few tokens.
    const POSITIONS: usize = 12;
    let Some(path) = fixtures::smollm2_file() else {
        eprintln!("skipped: no SmolLM2 file, see fixtures::smollm2_file");
        return;
    };
    let reference = fixtures::smollm2();
    let logits = Decoder::open(&path).logits(&reference.tokens[..POSITIONS]);
    for (position, (logits, expected)) in logits.iter().zip(&reference.positions).enumerate() {
        let divergence = expected.divergence(logits);
        assert!(divergence.abs() < 1e-6, "position {position}: {divergence}");
    }
}
