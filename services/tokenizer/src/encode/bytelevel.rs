//! Byte-level BPE with a known splitting pattern.

use std::{borrow::Cow, collections::HashMap};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer, Tokenizer};

use super::{
    EncodeError,
    bpe::{Bpe, Bytes},
    classes::Classes,
    nfc,
    scan::Pattern,
    split::{Piece, Splitter},
    words::Words,
};
use crate::bytes::byte_of;

pub struct ByteLevel {
    normalizes: bool,
    /// Added tokens that are matched after normalisation.
    normalized: Option<Splitter>,
    digits: Digits,
    pattern: Pattern,
    classes: Classes,
    bpe: Bpe,
    /// Words that are tokens as they stand, whatever the merges say; only for models that ask for it.
    whole: Option<HashMap<Box<[u8]>, u32>>,
}

/// Digits that are cut out one by one before the pattern sees the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    Together,
    Apart,
}

/// The part of a serialised model that its own type does not show.
#[derive(Deserialize)]
struct Merges<'a> {
    #[serde(borrow)]
    merges: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl ByteLevel {
    /// None if the tokenizer is anything but byte-level BPE as this encoder knows it.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let normalizes = match tokenizer.get_normalizer().map(serde_json::to_value) {
            None => false,
            Some(Ok(json)) if json["type"] == "NFC" => true,
            Some(_) => return None,
        };
        let (digits, pattern) = splitting(&serde_json::to_value(tokenizer.get_pre_tokenizer()?).ok()?)?;
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let plain = model.dropout.is_none_or(|p| p == 0.0)
            && model.continuing_subword_prefix.as_deref().unwrap_or_default().is_empty()
            && model.end_of_word_suffix.as_deref().unwrap_or_default().is_empty();
        if !plain {
            return None;
        }
        let normalized = Splitter::of_normalized(tokenizer);
        let ascii = tokenizer.get_added_tokens_decoder().values().all(|token| token.content.is_ascii());
        if normalizes && normalized.is_some() && !ascii {
            return None;
        }

        let vocabulary = model.get_vocab();
        let mut bytes = [None; 256];
        for (token, id) in &vocabulary {
            let mut chars = token.chars();
            if let (Some(c), None) = (chars.next(), chars.next())
                && let Some(byte) = byte_of(c)
            {
                bytes[usize::from(byte)] = Some(*id);
            }
        }
        let unknown = model.unk_token.as_ref().map(|token| vocabulary.get(token).copied());
        let complete = bytes.iter().all(Option::is_some);
        if !complete && (model.byte_fallback || unknown == Some(None)) {
            return None;
        }
        let bytes = Bytes { ids: bytes, unknown: unknown.flatten(), fuse_unknown: model.fuse_unk };
        let json = serde_json::to_string(model).ok()?;
        let Merges { merges } = serde_json::from_str(&json).ok()?;
        let mut joined = String::new();
        let merges: Option<Vec<(u32, u32, u32)>> = merges
            .iter()
            .map(|(left, right)| {
                joined.clear();
                joined.extend([left.as_ref(), right.as_ref()]);
                Some((
                    *vocabulary.get(left.as_ref())?,
                    *vocabulary.get(right.as_ref())?,
                    *vocabulary.get(&joined)?,
                ))
            })
            .collect();
        let whole = model.ignore_merges.then(|| {
            let raw = |token: &str| token.chars().map(byte_of).collect::<Option<Box<[u8]>>>();
            vocabulary.iter().filter_map(|(token, id)| Some((raw(token)?, *id))).collect()
        });
        let bpe = Bpe::new(bytes, merges?.into_iter());
        Some(Self { normalizes, normalized, digits, pattern, classes: Classes::load(), bpe, whole })
    }

    /// Appends the ids of a segment that holds no added token.
    pub fn encode(
        &self,
        oracle: &Tokenizer,
        segment: &str,
        words: &mut Words,
        ids: &mut Vec<u32>,
    ) -> Result<(), EncodeError> {
        let mut normal = Cow::Borrowed(segment);
        if self.normalizes && !nfc::is_surely_normal(segment) {
            let mut text = NormalizedString::from(segment);
            if let Some(normalizer) = oracle.get_normalizer() {
                normalizer.normalize(&mut text).map_err(|error| EncodeError(error.to_string()))?;
            }
            normal = Cow::Owned(text.get().to_owned());
        }
        match &self.normalized {
            None => self.encode_text(&normal, words, ids),
            Some(splitter) => {
                for piece in splitter.split(&normal) {
                    match piece {
                        Piece::Added(id) => ids.push(id),
                        Piece::Text(text) => self.encode_text(text, words, ids),
                    }
                }
            }
        }
        Ok(())
    }

    fn encode_text(&self, text: &str, words: &mut Words, ids: &mut Vec<u32>) {
        if self.digits == Digits::Together {
            return self.encode_piece(text, words, ids);
        }
        let mut start = 0;
        for (at, digit) in text.match_indices(char::is_numeric) {
            self.encode_piece(&text[start..at], words, ids);
            self.encode_piece(digit, words, ids);
            start = at + digit.len();
        }
        self.encode_piece(&text[start..], words, ids);
    }

    fn encode_piece(&self, piece: &str, words: &mut Words, ids: &mut Vec<u32>) {
        self.pattern.scan(self.classes, piece, |word| {
            words.encode(word.as_bytes(), ids, |word, ids| {
                match self.whole.as_ref().and_then(|whole| whole.get(word)) {
                    Some(id) => ids.push(*id),
                    None => self.bpe.encode(word, ids),
                }
            });
        });
    }
}

/// Reads a pre-tokenizer: optionally single digits apart, then a known pattern, then bytes.
fn splitting(pre_tokenizer: &Value) -> Option<(Digits, Pattern)> {
    let single = [pre_tokenizer.clone()];
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
        _ => &single,
    };
    let (digits, steps) = match steps.split_first()? {
        (first, rest) if is_digits_apart(first) && !rest.is_empty() => (Digits::Apart, rest),
        _ => (Digits::Together, steps),
    };
    let byte_level = |step: &Value, use_regex: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    match steps {
        [bytes] if byte_level(bytes, true) => Some((digits, Pattern::Gpt2)),
        [split, bytes] if byte_level(bytes, false) && is_isolating(split) => {
            Some((digits, Pattern::of_regex(split["pattern"]["Regex"].as_str()?)?))
        }
        _ => None,
    }
}

fn is_isolating(step: &Value) -> bool {
    step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] == false
}

fn is_digits_apart(step: &Value) -> bool {
    step["type"] == "Digits" && step["individual_digits"] == true
        || is_isolating(step) && step["pattern"]["Regex"] == r"\p{N}"
}
