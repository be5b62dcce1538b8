//! Log probabilities of a prompt, with the text of the tokens they speak of.

use std::collections::HashMap;

use messages::{TokenIds, frame::TokenLogprobs};
use serde_json::{Map, Value, json};

use super::json::float;

/// The log probabilities of one prompt.
#[derive(Debug)]
pub struct Scored {
    tokens: Vec<TokenLogprobs>,
    /// The text of every token named, if it was asked for.
    pieces: HashMap<u32, String>,
}

impl Scored {
    pub fn new(tokens: Vec<TokenLogprobs>) -> Self {
        Self { tokens, pieces: HashMap::new() }
    }

    /// Every token named, once.
    pub fn ids(&self) -> TokenIds {
        let named = self
            .tokens
            .iter()
            .flat_map(|scored| std::iter::once(scored.id).chain(scored.top.iter().map(|(id, _)| *id)));
        let mut ids: Vec<u32> = named.collect();
        ids.sort_unstable();
        ids.dedup();
        TokenIds::from(ids.as_slice())
    }

    /// Takes the text of the tokens that [`Self::ids`] names, in that order.
    pub fn name(&mut self, pieces: Vec<String>) {
        self.pieces = self.ids().iter().zip(pieces).collect();
    }

    pub fn tokens(&self) -> &[TokenLogprobs] {
        &self.tokens
    }

    pub fn piece(&self, id: u32) -> &str {
        self.pieces.get(&id).map_or("", String::as_str)
    }

    /// The most likely tokens at one place and the token that is there, by text.
    pub fn top(&self, scored: &TokenLogprobs) -> Value {
        let Some(own) = scored.logprob else { return Value::Null };
        let mut top: Map<String, Value> =
            scored.top.iter().map(|(id, logprob)| (self.piece(*id).to_owned(), float(*logprob))).collect();
        top.entry(self.piece(scored.id)).or_insert_with(|| float(own));
        Value::Object(top)
    }

    /// SGLang's triples: log probability, id, text or null.
    pub fn triples(&self) -> Value {
        self.tokens.iter().map(|scored| self.triple(scored.logprob, scored.id)).collect()
    }

    /// SGLang's triples of the most likely tokens at each place.
    pub fn top_triples(&self) -> Value {
        let tops = self.tokens.iter().map(|scored| match scored.logprob {
            None => Value::Null,
            Some(_) => scored.top.iter().map(|(id, logprob)| self.triple(Some(*logprob), *id)).collect(),
        });
        tops.collect()
    }

    fn triple(&self, logprob: Option<f32>, id: u32) -> Value {
        json!([logprob.map(float), id, self.pieces.get(&id)])
    }
}
