//! One choice of a request, put together again from frames that may be lost, repeated or reordered.

use messages::{
    frame::{End, TextDelta, TextLogprobs},
    generate::ChoiceJournal,
};

/// What ingress has of one choice. Text and tokens only ever grow, and each byte and token is taken once.
#[derive(Debug, Default)]
pub struct Strand {
    ids: Vec<u32>,
    /// Bytes of text taken.
    bytes: u64,
    /// Log probabilities taken.
    scored: usize,
    end: Option<End>,
}

/// The part of a frame that was new.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    pub text: String,
    /// How many of the frame's ids were new; they are the last ones of [`Strand::ids`].
    pub tokens: usize,
    pub logprobs: Vec<TextLogprobs>,
    pub end: Option<End>,
}

#[derive(Debug, PartialEq)]
pub enum Taken {
    New(Piece),
    /// All of it was here before.
    Known,
    /// Something before it is missing: nothing was taken.
    Gap,
}

impl Strand {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// Output tokens as usage counts them: up to the one that completed a stop string.
    pub fn output_tokens(&self) -> u32 {
        match self.end {
            Some(End::StopString { tokens, .. }) => tokens,
            _ => u32::try_from(self.ids.len()).unwrap_or(u32::MAX),
        }
    }

    /// Whether a sender that has reached `position` has said more than is here.
    pub fn lags(&self, position: u32) -> bool {
        !self.ended() && position as usize > self.ids.len()
    }

    /// Where to go on elsewhere. With `scored` the client wants log probabilities: an engine makes them for new tokens
    /// only, so the output ends where they are missing, and what comes behind is drawn again, the same.
    pub fn journal(&self, index: u32, scored: bool) -> ChoiceJournal {
        let kept = if scored { self.scored } else { self.ids.len() };
        ChoiceJournal { index, output: self.ids[..kept].into(), delivered: self.bytes }
    }

    /// Takes what is new in a frame.
    pub fn take(&mut self, delta: TextDelta) -> Taken {
        if self.ended() {
            return Taken::Known;
        }
        let TextDelta { at, ids, offset, mut text, logprobs, end, .. } = delta;
        let (at, have) = (at as usize, self.ids.len());
        if at > have || offset > self.bytes {
            return Taken::Gap;
        }
        let Some(known) = usize::try_from(self.bytes - offset).ok().map(|known| known.min(text.len())) else {
            return Taken::Gap;
        };
        if !text.is_char_boundary(known) {
            // Not the text that was sent before: whoever sent it has another history.
            return Taken::Gap;
        }
        let repeated = at < have || known > 0;
        if known > 0 {
            text.drain(..known);
        }
        self.ids.extend(ids.iter().skip(have - at));
        self.bytes += text.len() as u64;
        let logprobs = if repeated { self.unscored(logprobs) } else { logprobs };
        self.scored += logprobs.len();
        let tokens = self.ids.len() - have;
        if tokens == 0 && text.is_empty() && logprobs.is_empty() && end.is_none() {
            return Taken::Known;
        }
        self.end.clone_from(&end);
        Taken::New(Piece { text, tokens, logprobs, end })
    }

    /// Log probabilities carry no position of their own: those of a repeated frame are placed by their ids, as late
    /// as they fit the output.
    fn unscored(&self, logprobs: Vec<TextLogprobs>) -> Vec<TextLogprobs> {
        let fits = |start: usize| {
            start + logprobs.len() <= self.ids.len()
                && logprobs.iter().zip(&self.ids[start..]).all(|(scored, id)| scored.id == *id)
        };
        let earliest = self.scored.saturating_sub(logprobs.len());
        match (earliest..=self.scored).rev().find(|start| fits(*start)) {
            Some(start) => logprobs.into_iter().skip(self.scored - start).collect(),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
