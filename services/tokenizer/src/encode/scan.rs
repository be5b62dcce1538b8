//! The splitting patterns of byte-level BPE tokenizers, as scanners: one pass, no regex.

use super::classes::{Class, Classes};

/// A pattern family. Each constant below is the regex that a scanner stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    Gpt2,
    /// Llama-3 and Qwen2: contractions in any case, words with one leading symbol, numbers in groups.
    Llama3 {
        /// Digits a group of numbers has at most.
        digits: usize,
    },
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Pattern {
    /// The scanner of a regex; none if it is not one of the known.
    pub fn of_regex(regex: &str) -> Option<Self> {
        match regex {
            GPT2 => Some(Self::Gpt2),
            LLAMA3 => Some(Self::Llama3 { digits: 3 }),
            QWEN2 => Some(Self::Llama3 { digits: 1 }),
            _ => None,
        }
    }

    /// Calls `word` with each piece of `text`, in order; together they are the whole text.
    pub fn scan<'a>(self, classes: Classes, text: &'a str, mut word: impl FnMut(&'a str)) {
        let mut rest = text;
        while !rest.is_empty() {
            let cursor = Cursor { text: rest, classes };
            let end = match self {
                Self::Gpt2 => cursor.gpt2(),
                Self::Llama3 { digits } => cursor.llama3(digits),
            };
            let (piece, after) = rest.split_at(end);
            word(piece);
            rest = after;
        }
    }
}

struct Cursor<'a> {
    text: &'a str,
    classes: Classes,
}

impl Cursor<'_> {
    fn gpt2(&self) -> usize {
        if let Some(end) = self.contraction(false) {
            return end;
        }
        let (first, class) = self.at(0);
        let (start, class) = if first == ' ' && self.text.len() > 1 { (1, self.at(1).1) } else { (0, class) };
        match class {
            Class::Space => self.spaces(),
            class => self.run(start, class, usize::MAX),
        }
    }

    fn llama3(&self, digits: usize) -> usize {
        if let Some(end) = self.contraction(true) {
            return end;
        }
        let (first, class) = self.at(0);
        match class {
            Class::Letter => return self.run(0, Class::Letter, usize::MAX),
            Class::Number => return self.run(0, Class::Number, digits),
            Class::Space | Class::Other => {}
        }
        let next = first.len_utf8();
        if !matches!(first, '\r' | '\n') && self.class_at(next) == Some(Class::Letter) {
            return self.run(next, Class::Letter, usize::MAX);
        }
        let symbols = if first == ' ' { 1 } else { 0 };
        if self.class_at(symbols) == Some(Class::Other) {
            let end = self.run(symbols, Class::Other, usize::MAX);
            return end + self.text[end..].bytes().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        }
        let end = self.run(0, Class::Space, usize::MAX);
        match self.text[..end].rfind(['\r', '\n']) {
            Some(newline) => newline + 1,
            None => self.spaces(),
        }
    }

    /// White space up to the last of a run, which belongs to the word that follows; all of it at the end.
    fn spaces(&self) -> usize {
        let end = self.run(0, Class::Space, usize::MAX);
        if end == self.text.len() {
            return end;
        }
        match self.text[..end].char_indices().next_back() {
            Some((last, _)) if last > 0 => last,
            _ => end,
        }
    }

    fn contraction(&self, any_case: bool) -> Option<usize> {
        let rest = self.text.strip_prefix('\'')?;
        if any_case && rest.starts_with('ſ') {
            // The long s folds to s.
            return Some(1 + 'ſ'.len_utf8());
        }
        let lower = |byte: u8| if any_case { byte.to_ascii_lowercase() } else { byte };
        let bytes = rest.as_bytes();
        let (one, two) = (bytes.first().map(|b| lower(*b)), bytes.get(1).map(|b| lower(*b)));
        match (one?, two) {
            (b's' | b't' | b'm' | b'd', _) => Some(2),
            (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
            _ => None,
        }
    }

    /// End of the run of at most `limit` characters of a class that begins at `start`.
    fn run(&self, start: usize, class: Class, limit: usize) -> usize {
        let rest = &self.text[start..];
        let mut chars = rest.char_indices();
        let mut taken = 0;
        loop {
            match chars.next() {
                Some((_, c)) if taken < limit && self.classes.of(c) == class => taken += 1,
                Some((at, _)) => return start + at,
                None => return self.text.len(),
            }
        }
    }

    fn at(&self, at: usize) -> (char, Class) {
        let c = self.text[at..].chars().next().unwrap_or(' ');
        (c, self.classes.of(c))
    }

    fn class_at(&self, at: usize) -> Option<Class> {
        self.text[at..].chars().next().map(|c| self.classes.of(c))
    }
}
