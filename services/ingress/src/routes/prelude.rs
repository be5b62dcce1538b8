//! What an answer shows of its prompts: their text, and their log probabilities.

use actix_web::web::Data;
use messages::{
    TokenIds,
    generate::{Generate, ToTokenizer},
    input::Input,
    lease::ModelCard,
    text::{Answer, Detokenize, Tokenize},
};

use crate::{
    answer::{Prelude, Scored},
    api::{ApiError, Form},
    front::Front,
    road::{Event, Journey},
};

/// What has to be found out beside the output.
pub struct Wants {
    /// Prompts to be echoed.
    echoes: Vec<Input>,
    /// How many prompts are scored.
    scores: usize,
    prompts: usize,
    /// Scored tokens are shown as text.
    pieces: bool,
}

impl Wants {
    pub fn of(form: &Form, prompts: &[Generate]) -> Self {
        let (echo, pieces) = match form {
            Form::Completion(form) => (form.echo, true),
            Form::Native(form) => (false, form.text_in_logprobs),
            Form::Chat(_) => (false, false),
        };
        let echoed = prompts.iter().filter(|_| echo).map(|prompt| prompt.input.clone());
        let scored = prompts.iter().filter(|prompt| prompt.score_prompt_from.is_some());
        Self { echoes: echoed.collect(), scores: scored.count(), prompts: prompts.len(), pieces }
    }

    /// For a stream: waits until all prompts are scored.
    pub async fn before(
        self,
        journey: &mut Journey,
        card: &ModelCard,
        front: &Data<Front>,
    ) -> Result<Prelude, ApiError> {
        let mut events = Vec::new();
        let scored = |events: &[Event]| {
            events.iter().filter(|event| matches!(event, Event::Scored { .. } | Event::Closed { .. })).count()
        };
        while scored(&events) < self.scores && journey.more(&mut events).await? {}
        let prelude = self.resolve(&mut events, card, front).await?;
        journey.keep(events);
        Ok(prelude)
    }

    /// Takes the log probabilities out of `events` and finds all texts.
    pub async fn resolve(
        self,
        events: &mut Vec<Event>,
        card: &ModelCard,
        front: &Data<Front>,
    ) -> Result<Prelude, ApiError> {
        let mut prelude = Prelude::default();
        for input in self.echoes {
            prelude.echoes.push(text_of(input, card, front).await?);
        }
        if self.scores == 0 {
            return Ok(prelude);
        }
        prelude.scores.resize_with(self.prompts, || None);
        let (scored, rest): (Vec<_>, Vec<_>) =
            std::mem::take(events).into_iter().partition(|event| matches!(event, Event::Scored { .. }));
        *events = rest;
        for event in scored {
            let Event::Scored { prompt, tokens } = event else { continue };
            let mut scored = Scored::new(tokens);
            if self.pieces {
                scored.name(pieces_of(scored.ids(), card, front).await?);
            }
            if let Some(place) = prelude.scores.get_mut(prompt) {
                *place = Some(scored);
            }
        }
        Ok(prelude)
    }
}

async fn text_of(input: Input, card: &ModelCard, front: &Data<Front>) -> Result<String, ApiError> {
    match input {
        Input::Text(text) => Ok(text),
        Input::Tokens(ids) => {
            let question = ToTokenizer::Detokenize(Detokenize { ids, skip_special_tokens: false });
            match front.road.ask(&card.pool(), question).await? {
                Answer::Detokenized(answer) => Ok(answer.text),
                _ => Err(ApiError::internal("the tokenizer answered another question")),
            }
        }
        Input::Chat(_) => Err(ApiError::internal("a chat has no prompt to echo")),
    }
}

async fn pieces_of(ids: TokenIds, card: &ModelCard, front: &Data<Front>) -> Result<Vec<String>, ApiError> {
    let question = ToTokenizer::Tokenize(Tokenize { input: Input::Tokens(ids), add_special_tokens: false });
    match front.road.ask(&card.pool(), question).await? {
        Answer::Tokenized(answer) => Ok(answer.pieces),
        _ => Err(ApiError::internal("the tokenizer answered another question")),
    }
}
