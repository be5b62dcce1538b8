//! Finding stop strings in text that comes in pieces.

use std::sync::Arc;

/// The stop strings of a request, ready to be searched for (Knuth, Morris and Pratt's automaton for each).
#[derive(Debug, Clone, Default)]
pub struct StopStrings(Arc<[Stop]>);

#[derive(Debug)]
struct Stop {
    text: String,
    /// For each length of a match so far, the length to fall back to.
    failure: Vec<usize>,
}

/// The search in one choice's text.
#[derive(Debug)]
pub struct Search {
    stops: StopStrings,
    /// Per stop string, how much of it the text so far ends with.
    matched: Vec<usize>,
    /// Bytes seen.
    position: u64,
}

/// A stop string in the text, in bytes from the text's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub stop: usize,
    pub start: u64,
    pub end: u64,
}

impl StopStrings {
    /// Empty strings stop nothing.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self(stops.map(|text| Stop { text: text.clone(), failure: failure(text.as_bytes()) }).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn text(&self, index: usize) -> &str {
        &self.0[index].text
    }

    pub fn search(&self) -> Search {
        Search { stops: self.clone(), matched: vec![0; self.0.len()], position: 0 }
    }
}

/// Length of the longest proper prefix of each head of `text` that is also its suffix.
fn failure(text: &[u8]) -> Vec<usize> {
    let mut failure = vec![0; text.len()];
    let mut length = 0;
    for at in 1..text.len() {
        while length > 0 && text[at] != text[length] {
            length = failure[length - 1];
        }
        length += usize::from(text[at] == text[length]);
        failure[at] = length;
    }
    failure
}

impl Search {
    /// Reads the text that a token added. Of several stop strings that it completes, the one that begins first
    /// counts, and of those that begin together the first of the request.
    pub fn feed(&mut self, text: &str) -> Option<Found> {
        let mut found: Option<Found> = None;
        for (index, stop) in self.stops.0.iter().enumerate() {
            let wanted = stop.text.as_bytes();
            let mut matched = self.matched[index];
            for (at, byte) in text.bytes().enumerate() {
                while matched > 0 && wanted[matched] != byte {
                    matched = stop.failure[matched - 1];
                }
                matched += usize::from(wanted[matched] == byte);
                if matched == wanted.len() {
                    let end = self.position + at as u64 + 1;
                    let start = end - wanted.len() as u64;
                    if found.as_ref().is_none_or(|earlier| start < earlier.start) {
                        found = Some(Found { stop: index, start, end });
                    }
                    // The choice ends here; only the state's bounds matter from now on.
                    matched = 0;
                    break;
                }
            }
            self.matched[index] = matched;
        }
        self.position += text.len() as u64;
        found
    }

    /// Passes over text in which nothing stops.
    pub fn skip(&mut self, text: &str) {
        self.matched.fill(0);
        self.position += text.len() as u64;
    }

    /// Bytes at the end of the text that may be the beginning of a stop string.
    pub fn held(&self) -> usize {
        self.matched.iter().copied().max().unwrap_or(0)
    }
}
