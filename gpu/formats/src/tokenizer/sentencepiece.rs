//! SentencePiece BPE (Llama 2, Mistral): pieces with scores; `▁` stands for a space, unknown characters fall back to
//! byte tokens.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::{Value, json};

use super::vocabulary::{CONTROL, Vocabulary};
use crate::error::ErrorKind;

const SPACE: &str = "▁";

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Value, ErrorKind> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let missing =
        || ErrorKind::missing(format!("metadata key {SCORES}"), "the file's tokenizer is incomplete");
    let scores = vocabulary.metadata.floats(SCORES)?.ok_or_else(missing)?;
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let reason = format!("expected a number for each of {} tokens", vocabulary.tokens.len());
        return Err(ErrorKind::malformed(SCORES, reason));
    }
    let prefix = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prepend = prefix.then(|| json!({ "type": "Prepend", "prepend": SPACE }));
    let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let unescape = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
    let strip = prefix.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    let bytes = [json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    let normalizers: Vec<_> = prepend.into_iter().chain([escape]).collect();
    let decoders: Vec<_> = [unescape].into_iter().chain(bytes).chain(strip).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {
            "type": "Sequence",
            "normalizers": normalizers,
        },
        "pre_tokenizer": null,
        "post_processor": vocabulary.post_processor(true)?,
        "decoder": {
            "type": "Sequence",
            "decoders": decoders,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": vocabulary.unknown()?,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.map(),
            "merges": merges(vocabulary, scores),
        },
    }))
}

/// Every way to make a piece of two others, best score first: the order in which SentencePiece would merge.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mergeable = |piece: &str| ids.get(piece).copied().filter(|&id| vocabulary.kind(id) != CONTROL);
    let mut found = Vec::new();
    for (id, piece) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.kind(*id) != CONTROL)
    {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let first = found.len();
        found.extend(splits.filter_map(|(left, right)| {
            Some((id, mergeable(left)?, mergeable(right)?, left.chars().count(), right.chars().count()))
        }));
        found[first..].sort_by_key(|&(_, left, right, ..)| (left, right));
    }
    found.sort_by(|a, b| {
        scores[b.0].total_cmp(&scores[a.0]).then_with(|| (Reverse((a.3, a.4))).cmp(&Reverse((b.3, b.4))))
    });
    let text = |id: usize| vocabulary.tokens[id].clone();
    found.into_iter().map(|(_, left, right, ..)| [text(left), text(right)]).collect()
}
