use crate::{SamplingParams, TokenId};

/// The tokens of one choice so far, as far as sampling needs them: how many were put out, and, where a penalty is
/// on, which ones.
#[derive(Debug, Clone, Default)]
pub struct History {
    output_len: u32,
    /// Sorted by token; empty when no penalty is on.
    seen: Vec<Seen>,
    counts: bool,
}

/// A token of the prompt or the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub token: TokenId,
    /// Times in the output.
    pub count: u32,
}

impl History {
    /// The history of a choice that has `prompt` and has put out `output`. `room` is how many more tokens it may put
    /// out before [`Self::push`] may allocate.
    pub fn new(params: &SamplingParams, prompt: &[TokenId], output: &[TokenId], room: usize) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let counts = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let mut history = Self { output_len: output.len() as u32, seen: Vec::new(), counts };
        if counts {
            let prompt = if repetition { prompt } else { &[] };
            let mut tokens: Vec<Seen> = prompt.iter().map(|&token| Seen { token, count: 0 }).collect();
            tokens.extend(output.iter().map(|&token| Seen { token, count: 1 }));
            tokens.sort_unstable_by_key(|seen| seen.token);
            history.seen.reserve_exact(tokens.len() + room);
            for next in tokens {
                match history.seen.last_mut() {
                    Some(last) if last.token == next.token => last.count += next.count,
                    _ => history.seen.push(next),
                }
            }
        }
        history
    }

    /// Adds a token to the output.
    pub fn push(&mut self, token: TokenId) {
        self.output_len += 1;
        if self.counts {
            match self.seen.binary_search_by_key(&token, |seen| seen.token) {
                Ok(at) => self.seen[at].count += 1,
                Err(at) => self.seen.insert(at, Seen { token, count: 1 }),
            }
        }
    }

    /// Tokens put out so far: the output position of the next one.
    pub fn output_len(&self) -> u32 {
        self.output_len
    }

    pub(super) fn seen(&self) -> &[Seen] {
        &self.seen
    }
}
