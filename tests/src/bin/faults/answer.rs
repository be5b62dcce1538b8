//! One answer, put together the same way whether it was streamed or came whole.

use std::fmt::Debug;

use anyhow::{Context, bail};
use serde_json::Value;

use stator_tests::http::Event;

/// What a client got.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub choices: Vec<Choice>,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub text: String,
    pub finish_reason: Option<String>,
    pub logprobs: Vec<Value>,
}

impl Answer {
    /// # Errors
    /// If an event is no JSON or an error, or the stream lacks its end.
    pub fn of_stream(events: &[Event]) -> anyhow::Result<Self> {
        let mut answer = Self::default();
        let (last, chunks) = events.split_last().context("an empty stream")?;
        for event in chunks {
            answer.take(&serde_json::from_str(&event.data)?, "delta")?;
        }
        if last.data != "[DONE]" {
            bail!("the stream ended with: {}", last.data);
        }
        answer.check()
    }

    /// # Errors
    /// If the body is an error.
    pub fn of_whole(body: &Value) -> anyhow::Result<Self> {
        let mut answer = Self::default();
        answer.take(body, "message")?;
        answer.check()
    }

    fn take(&mut self, body: &Value, part: &str) -> anyhow::Result<()> {
        if !body["error"].is_null() {
            bail!("error: {}", body["error"]);
        }
        if let Some(usage) = body["usage"].as_object() {
            self.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or_default();
            self.completion_tokens = usage["completion_tokens"].as_u64().unwrap_or_default();
        }
        for piece in body["choices"].as_array().into_iter().flatten() {
            let index = usize::try_from(piece["index"].as_u64().unwrap_or_default())?;
            self.choices.resize(self.choices.len().max(index + 1), Choice::default());
            let choice = &mut self.choices[index];
            choice.text.push_str(piece[part]["content"].as_str().unwrap_or_default());
            choice.logprobs.extend(piece["logprobs"]["content"].as_array().into_iter().flatten().cloned());
            if let Some(reason) = piece["finish_reason"].as_str() {
                choice.finish_reason = Some(reason.to_owned());
            }
        }
        Ok(())
    }

    fn check(self) -> anyhow::Result<Self> {
        if self.choices.is_empty() || self.choices.iter().any(|choice| choice.finish_reason.is_none()) {
            bail!("a choice has no end: {self:?}");
        }
        Ok(self)
    }

    /// What is not as expected, in words.
    pub fn difference(&self, expected: &Self) -> String {
        let mut found = Vec::new();
        let mut note = |what: String, got: &dyn Debug, expected: &dyn Debug| {
            let (got, expected) = (format!("{got:?}"), format!("{expected:?}"));
            if got != expected {
                found.push(format!("{what} {got} instead of {expected}"));
            }
        };
        note("prompt tokens".to_owned(), &self.prompt_tokens, &expected.prompt_tokens);
        note("completion tokens".to_owned(), &self.completion_tokens, &expected.completion_tokens);
        note("choices".to_owned(), &self.choices.len(), &expected.choices.len());
        for (i, (got, expected)) in self.choices.iter().zip(&expected.choices).enumerate() {
            note(format!("choice {i}: end"), &got.finish_reason, &expected.finish_reason);
            note(format!("choice {i}: log probabilities"), &got.logprobs.len(), &expected.logprobs.len());
            let other = got.logprobs.iter().zip(&expected.logprobs).position(|(a, b)| a != b);
            if let Some(at) = other {
                let what = format!("choice {i}: log probability {at}");
                note(what, &got.logprobs[at].to_string(), &expected.logprobs[at].to_string());
            }
            note(format!("choice {i}: text"), &got.text, &expected.text);
        }
        found.join("\n      ")
    }

    /// Characters of `expected` that are missing here, and characters here that are none of it: what lies between
    /// the longest common beginning and the longest common end.
    pub fn lost_and_repeated(&self, expected: &Self) -> (usize, usize) {
        let none = Choice::default();
        let both = (0..self.choices.len().max(expected.choices.len())).map(|i| {
            let text =
                |answer: &Self| answer.choices.get(i).unwrap_or(&none).text.chars().collect::<Vec<_>>();
            (text(expected), text(self))
        });
        both.fold((0, 0), |(lost, repeated), (expected, got)| {
            let same =
                |pairs: &mut dyn Iterator<Item = (&char, &char)>| pairs.take_while(|(a, b)| a == b).count();
            let begin = same(&mut expected.iter().zip(&got));
            let (expected, got) = (&expected[begin..], &got[begin..]);
            let end = same(&mut expected.iter().rev().zip(got.iter().rev()));
            (lost + expected.len() - end, repeated + got.len() - end)
        })
    }
}
