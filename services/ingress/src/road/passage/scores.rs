//! Log probabilities of the prompt as they come in: in parts, told to the client as one.

use messages::{TokenIds, frame::TokenLogprobs};

#[derive(Debug)]
pub struct Scores {
    /// Index of the first token that is to be scored; `None`: none is.
    from: Option<u32>,
    have: Vec<TokenLogprobs>,
    done: bool,
}

/// What a part has brought.
#[derive(Debug)]
pub enum Scored {
    /// Parts before it are missing.
    Gap,
    NotAll,
    All(Vec<TokenLogprobs>),
}

impl Scores {
    pub fn new(from: Option<u32>) -> Self {
        Self { from, have: Vec::new(), done: from.is_none() }
    }

    /// All that was asked for is here.
    pub fn are_done(&self) -> bool {
        self.done
    }

    /// An engine begins with this prompt. Its first token follows nothing: it has no probability, and no engine reports
    /// it.
    pub fn begin(&mut self, prompt: &TokenIds) -> Scored {
        let first = prompt.iter().next().filter(|_| self.from == Some(0));
        self.have =
            first.map(|id| TokenLogprobs { id, logprob: None, top: Vec::new() }).into_iter().collect();
        self.all(prompt)
    }

    /// Takes the scores of the prompt's tokens from index `first` on.
    pub fn take(&mut self, first: u32, tokens: Vec<TokenLogprobs>, prompt: Option<&TokenIds>) -> Scored {
        let Some(from) = self.from.filter(|_| !self.done) else { return Scored::NotAll };
        let next = from as usize + self.have.len();
        match prompt {
            Some(prompt) if first as usize <= next => {
                self.have.extend(tokens.into_iter().skip(next - first as usize));
                self.all(prompt)
            }
            _ => Scored::Gap,
        }
    }

    fn all(&mut self, prompt: &TokenIds) -> Scored {
        let Some(from) = self.from.filter(|_| !self.done) else { return Scored::NotAll };
        if from as usize + self.have.len() < prompt.len() {
            return Scored::NotAll;
        }
        self.done = true;
        Scored::All(std::mem::take(&mut self.have))
    }
}
