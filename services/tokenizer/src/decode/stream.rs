//! The text of a sequence of tokens, piece by piece.

use super::{
    pieces::{Pieces, Scheme},
    utf8::Utf8,
};

/// Turns tokens to text as they come; together the pieces are what decoding all at once gives.
#[derive(Debug)]
pub struct TextStream {
    skip_special: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Joined {
        utf8: Utf8,
        /// Nothing was decoded yet and a first space is not part of the text.
        strip: bool,
    },
    /// The state of the tokenizer's own stepwise decoder.
    Opaque { ids: Vec<u32>, prefix: String, prefix_index: usize },
}

impl TextStream {
    /// `begins`: the tokens begin a text, instead of going on with a prompt.
    pub fn new(pieces: &Pieces, skip_special: bool, begins: bool) -> Self {
        let state = match pieces.scheme() {
            Scheme::Joined { broken, strips_first_space } => {
                State::Joined { utf8: Utf8::new(broken), strip: begins && strips_first_space }
            }
            Scheme::Opaque => State::Opaque { ids: Vec::new(), prefix: String::new(), prefix_index: 0 },
        };
        Self { skip_special, state }
    }

    /// Appends to `text` what a token adds.
    #[inline]
    pub fn push(&mut self, pieces: &Pieces, id: u32, text: &mut String) {
        if self.skip_special && pieces.is_special(id) {
            return;
        }
        match &mut self.state {
            State::Joined { utf8, strip } => {
                let mut bytes = pieces.bytes(id);
                if *strip && !bytes.is_empty() {
                    *strip = false;
                    bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                }
                utf8.push(bytes, text);
            }
            State::Opaque { ids, prefix, prefix_index } => {
                let tokenizer = pieces.tokenizer();
                match tokenizers::step_decode_stream(
                    &**tokenizer,
                    vec![id],
                    self.skip_special,
                    ids,
                    prefix,
                    prefix_index,
                ) {
                    Ok(step) => text.push_str(&step.unwrap_or_default()),
                    // A decoder that rewrites what it said before: begin again from this token.
                    Err(_) => {
                        text.push_str(&tokenizer.decode(&[id], self.skip_special).unwrap_or_default());
                        (*ids, *prefix, *prefix_index) = (Vec::new(), String::new(), 0);
                    }
                }
            }
        }
    }

    /// Appends what was held back for a token that does not come.
    pub fn finish(&mut self, pieces: &Pieces, text: &mut String) {
        match &mut self.state {
            State::Joined { utf8, .. } => utf8.finish(text),
            State::Opaque { ids, prefix, .. } => {
                let rest = pieces.tokenizer().decode(ids, self.skip_special).unwrap_or_default();
                text.push_str(rest.strip_prefix(prefix.as_str()).unwrap_or_default());
                ids.clear();
                prefix.clear();
            }
        }
    }

    /// Decodes a whole text.
    pub fn decode_all(pieces: &Pieces, ids: impl Iterator<Item = u32>, skip_special: bool) -> String {
        let mut stream = Self::new(pieces, skip_special, true);
        let mut text = String::new();
        ids.for_each(|id| stream.push(pieces, id, &mut text));
        stream.finish(pieces, &mut text);
        text
    }
}
