//! The bytes of every token.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::utf8::Broken;
use crate::bytes::byte_of;

/// Mark that SentencePiece puts for a space.
const SPACE_MARK: &str = "▁";

/// What tokens stand for, from a tokenizer's vocabulary and decoder.
pub struct Pieces {
    tokenizer: Arc<Tokenizer>,
    scheme: Scheme,
    /// All bytes in one place; token `id` has those from `ends[id - 1]` to `ends[id]`.
    bytes: Box<[u8]>,
    ends: Box<[u32]>,
    special: Box<[u64]>,
}

/// How the bytes of tokens join to text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// They are joined as they are.
    Joined { broken: Broken, strips_first_space: bool },
    /// Only the tokenizer's own decoder knows.
    Opaque,
}

impl Pieces {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok());
        let scheme = scheme(&decoder.unwrap_or_default());
        let added = tokenizer.get_added_vocabulary();
        let count = tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(count);
        let mut special = vec![0u64; count.div_ceil(64)];
        for id in 0..count as u32 {
            if let Some(token) = tokenizer.id_to_token(id) {
                write_bytes(scheme, &tokenizer, id, &token, &mut bytes);
                if added.is_special_token(&token) {
                    special[id as usize / 64] |= 1 << (id % 64);
                }
            }
            ends.push(bytes.len() as u32);
        }
        Self { tokenizer, scheme, bytes: bytes.into(), ends: ends.into(), special: special.into() }
    }

    /// Ids from 0 that this vocabulary spans.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of a token, which may be part of a character; none for an id that is no token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// Whether decoding may leave the token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

fn write_bytes(scheme: Scheme, tokenizer: &Tokenizer, id: u32, token: &str, out: &mut Vec<u8>) {
    match scheme {
        Scheme::Joined { broken: Broken::PerSequence, .. } => {
            let start = out.len();
            for c in token.chars() {
                match byte_of(c) {
                    Some(byte) => out.push(byte),
                    // Not of the byte alphabet: the token is plain text.
                    None => {
                        out.truncate(start);
                        return out.extend_from_slice(token.as_bytes());
                    }
                }
            }
        }
        Scheme::Joined { broken: Broken::PerByte, .. } => match fallback_byte(token) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(token.replace(SPACE_MARK, " ").as_bytes()),
        },
        Scheme::Opaque => {
            out.extend_from_slice(tokenizer.decode(&[id], false).unwrap_or_default().as_bytes());
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

fn scheme(decoder: &Value) -> Scheme {
    if decoder["type"] == "ByteLevel" {
        return Scheme::Joined { broken: Broken::PerSequence, strips_first_space: false };
    }
    let steps = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
    let (strips_first_space, steps) = match steps {
        [rest @ .., strip] if strip["type"] == "Strip" => {
            let one_space = strip["content"] == " " && strip["start"] == 1 && strip["stop"] == 0;
            if !one_space {
                return Scheme::Opaque;
            }
            (true, rest)
        }
        steps => (false, steps),
    };
    let [replace, fallback, fuse] = steps else { return Scheme::Opaque };
    let marks = replace["type"] == "Replace"
        && replace["pattern"]["String"] == SPACE_MARK
        && replace["content"] == " "
        && fallback["type"] == "ByteFallback"
        && fuse["type"] == "Fuse";
    if marks { Scheme::Joined { broken: Broken::PerByte, strips_first_space } } else { Scheme::Opaque }
}
