//! Text to token ids, exactly as the `tokenizers` crate encodes it, but fast.
//!
//! Added tokens such as `<|im_end|>` split a text before anything else looks at it, so what lies between two of them
//! encodes on its own: those segments are cached, and a conversation's next turn encodes only what is new. Byte-level
//! BPE tokenizers with a known splitting pattern get their own encoder ([`bytelevel`]); all others go to `tokenizers`.

mod bpe;
mod bytelevel;
mod classes;
mod nfc;
mod scan;
mod segments;
mod split;
mod words;

use std::sync::Arc;

use parking_lot::Mutex;
use tokenizers::Tokenizer;

use bytelevel::ByteLevel;
use segments::Segments;
use split::{Piece, Splitter};
pub use words::Words;

/// Shorter segments encode faster than they are looked up.
const CACHED_FROM_BYTES: usize = 48;

/// Text that the model's tokenizer cannot encode.
#[derive(Debug, thiserror::Error)]
#[error("the text cannot be encoded: {0}")]
pub struct EncodeError(String);

/// Token ids of a text.
#[derive(Debug, Default)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// How many of them came from the segment cache.
    pub cached: usize,
}

pub struct Encoder {
    oracle: Arc<Tokenizer>,
    /// None if cutting at added tokens is not exact for this tokenizer.
    splitter: Option<Splitter>,
    fast: Option<ByteLevel>,
    around: Option<Around>,
    segments: Mutex<Segments>,
}

/// What the tokenizer puts around plain text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Encoder {
    /// `cache_bytes` bounds the segment cache.
    pub fn new(oracle: Arc<Tokenizer>, cache_bytes: usize) -> Self {
        let splitter = Splitter::of(&oracle);
        let fast = splitter.as_ref().and_then(|_| ByteLevel::of(&oracle));
        let around = Around::of(&oracle);
        Self { oracle, splitter, fast, around, segments: Mutex::new(Segments::new(cache_bytes)) }
    }

    /// Whether texts take the fast path.
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// Encodes a text; `add_special_tokens` puts around it what the tokenizer puts around plain text.
    ///
    /// # Errors
    /// If the tokenizer cannot represent the text.
    pub fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        words: &mut Words,
    ) -> Result<Encoded, EncodeError> {
        let Some(around) = self.around.as_ref().filter(|_| add_special_tokens) else {
            if add_special_tokens {
                return Ok(Encoded { ids: self.oracle(text, true)?, cached: 0 });
            }
            return self.plain(text, words);
        };
        let mut encoded = Encoded { ids: around.before.clone(), cached: 0 };
        let plain = self.plain(text, words)?;
        encoded.ids.extend(plain.ids);
        encoded.ids.extend(&around.after);
        encoded.cached = plain.cached;
        Ok(encoded)
    }

    fn plain(&self, text: &str, words: &mut Words) -> Result<Encoded, EncodeError> {
        let mut encoded = Encoded::default();
        let Some(splitter) = &self.splitter else {
            self.cached(None, text, words, &mut encoded)?;
            return Ok(encoded);
        };
        let mut after = None;
        for piece in splitter.split(text) {
            match piece {
                Piece::Added(id) => {
                    encoded.ids.push(id);
                    after = Some(id);
                }
                Piece::Text(segment) => self.cached(after, segment, words, &mut encoded)?,
            }
        }
        Ok(encoded)
    }

    /// Encodes the segment that follows the added token `after`, or begins the text.
    fn cached(
        &self,
        after: Option<u32>,
        segment: &str,
        words: &mut Words,
        encoded: &mut Encoded,
    ) -> Result<(), EncodeError> {
        // Only a tokenizer that treats the beginning of a text differently cares what a segment follows.
        let begins = after.is_none() && self.fast.is_none();
        let worthwhile = segment.len() >= CACHED_FROM_BYTES;
        if worthwhile && let Some(ids) = self.segments.lock().get(begins, segment) {
            encoded.ids.extend_from_slice(&ids);
            encoded.cached += ids.len();
            return Ok(());
        }
        let start = encoded.ids.len();
        match &self.fast {
            Some(fast) => fast.encode(&self.oracle, segment, words, &mut encoded.ids)?,
            None => encoded.ids.extend(self.slow(after, segment)?),
        }
        if worthwhile {
            self.segments.lock().put(begins, segment, &encoded.ids[start..]);
        }
        Ok(())
    }

    /// A segment after an added token is encoded behind that token, so that it is no beginning of a text.
    fn slow(&self, after: Option<u32>, segment: &str) -> Result<Vec<u32>, EncodeError> {
        let Some(token) = after.and_then(|id| self.oracle.id_to_token(id)) else {
            return self.oracle(segment, false);
        };
        let mut ids = self.oracle(&format!("{token}{segment}"), false)?;
        ids.remove(0);
        Ok(ids)
    }

    fn oracle(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EncodeError> {
        let encoding =
            self.oracle.encode_fast(text, add_special_tokens).map_err(|e| EncodeError(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Around {
    /// Found by encoding two texts with and without; none if the two disagree.
    fn of(oracle: &Tokenizer) -> Option<Self> {
        let probe = |text: &str| {
            let bare = oracle.encode_fast(text, false).ok()?.get_ids().to_vec();
            let full = oracle.encode_fast(text, true).ok()?.get_ids().to_vec();
            let at = full.windows(bare.len().max(1)).position(|window| window == bare)?;
            Some(Self { before: full[..at].to_vec(), after: full[at + bare.len()..].to_vec() })
        };
        let (one, other) = (probe("a")?, probe("b c d")?);
        (one == other).then_some(one)
    }
}

#[cfg(test)]
mod tests;
