//! Cutting a text at added tokens.

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Tokenizer};

/// Finds the added tokens that are matched against the text as it came.
pub struct Splitter {
    finder: Option<AhoCorasick>,
    ids: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Added(u32),
    Text(&'a str),
}

impl Splitter {
    /// None if one of the added tokens eats the white space around it or matches whole words only.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        if added.values().any(|token| token.lstrip || token.rstrip || token.single_word) {
            return None;
        }
        Self::build(added.iter().filter(|(_, token)| !token.normalized))
    }

    /// The added tokens that are matched after normalisation. None if there are none.
    pub fn of_normalized(tokenizer: &Tokenizer) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        Self::build(added.iter().filter(|(_, token)| token.normalized)).filter(|s| s.finder.is_some())
    }

    fn build<'a>(tokens: impl Iterator<Item = (&'a u32, &'a AddedToken)>) -> Option<Self> {
        let tokens: Vec<(u32, &str)> = tokens
            .map(|(id, token)| (*id, token.content.as_str()))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        let finder = match tokens.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(tokens.iter().map(|(_, text)| text))
                    .ok()?,
            ),
        };
        Some(Self { finder, ids: tokens.iter().map(|(id, _)| *id).collect() })
    }

    pub fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for found in self.finder.iter().flat_map(|finder| finder.find_iter(text)) {
            if start < found.start() {
                pieces.push(Piece::Text(&text[start..found.start()]));
            }
            pieces.push(Piece::Added(self.ids[found.pattern().as_usize()]));
            start = found.end();
        }
        if start < text.len() {
            pieces.push(Piece::Text(&text[start..]));
        }
        pieces
    }
}
