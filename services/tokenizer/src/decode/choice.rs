//! One choice of a request: from the engine's token frames to text frames.

use std::collections::VecDeque;

use messages::{
    TokenIds,
    frame::{End, TextDelta, TextLogprobs, TokenDelta, TokenLogprobs, TopLogprob},
    generate::TextOptions,
};

use super::{
    pieces::Pieces,
    stop::{Found, Search, StopStrings},
    stream::TextStream,
};

/// What became of a frame.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Nothing new in it.
    Known,
    /// Tokens before it are missing; it was not taken.
    Gap,
    Text(TextDelta),
    /// The same, and a stop string ended the choice before the engine did.
    Stopped(TextDelta),
}

/// The state of one choice. Positions count output tokens, offsets bytes of text.
#[derive(Debug)]
pub struct Choice {
    pub index: u32,
    /// Position of the token that comes next.
    at: u32,
    /// Stop strings count from this position on.
    min_tokens: u32,
    stream: TextStream,
    search: Option<Search>,
    stops: StopStrings,
    include_stop: bool,
    skip_special: bool,
    /// Text from offset `released` on.
    pending: String,
    released: u64,
    /// The client has the text before this offset.
    delivered: u64,
    /// Of tokens whose text is not released, with the offset at which it begins.
    logprobs: VecDeque<(u64, TextLogprobs)>,
    ended: bool,
}

/// What a choice is made with.
#[derive(Debug)]
pub struct Settings<'a> {
    pub text: &'a TextOptions,
    pub stops: &'a StopStrings,
    pub min_tokens: u32,
    /// The prompt shows no text, so that the output begins one.
    pub begins: bool,
}

impl Choice {
    pub fn new(index: u32, pieces: &Pieces, settings: &Settings<'_>) -> Self {
        let skip_special = settings.text.skip_special_tokens;
        Self {
            index,
            at: 0,
            min_tokens: settings.min_tokens,
            stream: TextStream::new(pieces, skip_special, settings.begins),
            search: (!settings.stops.is_empty()).then(|| settings.stops.search()),
            stops: settings.stops.clone(),
            include_stop: settings.text.include_stop,
            skip_special,
            pending: String::new(),
            released: 0,
            delivered: 0,
            logprobs: VecDeque::new(),
            ended: false,
        }
    }

    /// Position of the token that comes next.
    pub fn at(&self) -> u32 {
        self.at
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Goes through output that the client's ingress has, with the text up to `delivered`. What that output says
    /// beyond it is returned: more text, or an end by a stop string.
    pub fn replay(&mut self, pieces: &Pieces, output: &TokenIds, delivered: u64) -> Option<TextDelta> {
        self.delivered = delivered;
        let end = output.iter().find_map(|id| {
            let found = self.token(pieces, id)?;
            Some(self.stop_at(&found))
        });
        let mut delta = self.delta(self.at, TokenIds::default(), end);
        // Tokens that came before the replay are the journal's already.
        delta.logprobs.clear();
        (!delta.text.is_empty() || delta.end.is_some()).then_some(delta)
    }

    /// Takes a frame of the engine.
    pub fn accept(&mut self, pieces: &Pieces, frame: TokenDelta) -> Outcome {
        if self.ended {
            return Outcome::Known;
        }
        if frame.at > self.at {
            return Outcome::Gap;
        }
        let known = (self.at - frame.at) as usize;
        let fresh = frame.ids.len().saturating_sub(known);
        if known > frame.ids.len() || (fresh == 0 && frame.end.is_none()) {
            return Outcome::Known;
        }
        let at = self.at;
        let mut logprobs = frame.logprobs.into_iter().skip(known);
        for (index, id) in frame.ids.iter().enumerate().skip(known) {
            let logprobs = logprobs.next();
            let last = index + 1 == frame.ids.len();
            if last && matches!(frame.end, Some(End::StopToken(_))) && self.hides_stop_token() {
                self.at += 1;
                break;
            }
            if let Some(logprobs) = logprobs {
                self.logprobs.push_back((self.text_end(), with_text(pieces, logprobs)));
            }
            if let Some(found) = self.token(pieces, id) {
                let ids = frame.ids.iter().take(index + 1).skip(known).collect();
                let end = self.stop_at(&found);
                return Outcome::Stopped(self.delta(at, ids, Some(end)));
            }
        }
        if frame.end.is_some() {
            self.stream.finish(pieces, &mut self.pending);
        }
        let ids = if known == 0 { frame.ids } else { frame.ids.iter().skip(known).collect() };
        Outcome::Text(self.delta(at, ids, frame.end))
    }

    /// The text of a stop token is no part of the answer unless asked for.
    fn hides_stop_token(&self) -> bool {
        self.skip_special && !self.include_stop
    }

    /// Offset at which the text so far ends.
    fn text_end(&self) -> u64 {
        self.released + self.pending.len() as u64
    }

    /// Adds a token's text; tells if a stop string is complete.
    fn token(&mut self, pieces: &Pieces, id: u32) -> Option<Found> {
        let start = self.pending.len();
        self.stream.push(pieces, id, &mut self.pending);
        self.at += 1;
        let search = self.search.as_mut()?;
        let text = &self.pending[start..];
        if self.at < self.min_tokens {
            search.skip(text);
            return None;
        }
        search.feed(text)
    }

    /// Cuts the text at a stop string.
    fn stop_at(&mut self, found: &Found) -> End {
        let cut = if self.include_stop { found.end } else { found.start };
        self.pending.truncate(cut.saturating_sub(self.released) as usize);
        self.logprobs.retain(|(start, _)| *start < cut);
        End::StopString { matched: self.stops.text(found.stop).to_owned(), tokens: self.at }
    }

    /// Releases what is certain, everything if the choice ends.
    fn delta(&mut self, at: u32, ids: TokenIds, end: Option<End>) -> TextDelta {
        let held = match (&end, &self.search) {
            (None, Some(search)) => search.held(),
            _ => 0,
        };
        let whole = self.pending.len().saturating_sub(held);
        let upto = self.released + whole as u64;
        let known = self.delivered.saturating_sub(self.released).min(whole as u64) as usize;
        let text = match (whole == self.pending.len(), known) {
            (true, 0) => std::mem::take(&mut self.pending),
            _ => {
                let text = self.pending.get(known..whole).unwrap_or_default().to_owned();
                self.pending.drain(..whole);
                text
            }
        };
        let offset = self.released + known as u64;
        self.released = upto;
        let certain = match &end {
            Some(_) => self.logprobs.len(),
            None => self.logprobs.iter().take_while(|(start, _)| *start < upto).count(),
        };
        let logprobs = self.logprobs.drain(..certain).map(|(_, logprobs)| logprobs).collect();
        self.ended = end.is_some();
        TextDelta { choice: self.index, at, ids, offset, text, logprobs, end }
    }
}

fn with_text(pieces: &Pieces, logprobs: TokenLogprobs) -> TextLogprobs {
    let top = |(id, logprob): (u32, f32)| TopLogprob { id, token: pieces.bytes(id).to_vec(), logprob };
    TextLogprobs {
        id: logprobs.id,
        token: pieces.bytes(logprobs.id).to_vec(),
        logprob: logprobs.logprob,
        top: logprobs.top.into_iter().map(top).collect(),
    }
}
