//! Prompts of a wanted length in tokens, made of words that are one token each.

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::Method;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::Deserialize;
use serde_json::json;

use super::{
    LoadArgs,
    words::{FIRST, WORDS},
};
use crate::http::{Connection, Server};

/// Enough to make prompts differ.
const WORDS_AT_LEAST: usize = 8;
/// A word is judged by this many of it.
const REPEATS: usize = 4;

/// Makes prompts; what request `n` asks depends only on the seed and `n`.
pub struct Prompts {
    words: Vec<&'static str>,
    /// Tokens of a request that are not words: the chat template's, and the first word.
    overhead: u32,
    args: LoadArgs,
}

/// One request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub text: String,
    pub max_tokens: u32,
}

#[derive(Deserialize)]
struct Answer {
    usage: Usage,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
}

impl Prompts {
    /// Learns how the server cuts words into tokens, and what its chat template adds, from the usage that it counts for
    /// short questions: any server that speaks OpenAI's API will do.
    ///
    /// # Errors
    /// If the server does not answer, or the wanted input length is less than a template with one word.
    pub async fn calibrate(server: &Server, model: &str, args: &LoadArgs) -> anyhow::Result<Self> {
        let mut connection = server.connect().await?;
        let alone = count(&mut connection, model, FIRST).await?;
        let mut words = Vec::new();
        for word in WORDS {
            let text = format!("{FIRST}{}", format!(" {word}").repeat(REPEATS));
            if count(&mut connection, model, &text).await? == alone + REPEATS {
                words.push(word);
            }
        }
        ensure!(
            words.len() >= WORDS_AT_LEAST,
            "this vocabulary cuts common English words: prompts of exact length cannot be made"
        );
        let prompts = Self { words, overhead: u32::try_from(alone)?, args: args.clone() };
        prompts.check()?;
        Ok(prompts)
    }

    fn check(&self) -> anyhow::Result<()> {
        let (shortest, overhead) = (*self.args.isl.0.start(), self.overhead);
        ensure!(
            shortest >= overhead,
            "--isl {shortest} is less than the {overhead} tokens of the chat template"
        );
        let shared = self.args.prefix_tokens;
        ensure!(
            shared + overhead <= shortest,
            "--prefix-tokens {shared} and {overhead} tokens of the chat template exceed --isl {shortest}"
        );
        Ok(())
    }

    /// Request number `n`.
    pub fn ask(&self, n: u64) -> Ask {
        let mut rng = rng(self.args.seed, 2 * n);
        let input = rng.random_range(self.args.isl.0.clone());
        let max_tokens = rng.random_range(self.args.osl.0.clone());
        let mut text = FIRST.to_owned();
        let mut left = (input - self.overhead) as usize;
        if self.args.prefix_groups > 0 {
            let group = rng.random_range(0..self.args.prefix_groups);
            let shared = self.args.prefix_tokens as usize;
            // Odd streams are the groups', even ones the requests'.
            self.append(&mut text, shared, &mut self::rng(self.args.seed, 2 * group + 1));
            left -= shared;
        }
        self.append(&mut text, left, &mut rng);
        Ask { text, max_tokens }
    }

    fn append(&self, text: &mut String, count: usize, rng: &mut StdRng) {
        for _ in 0..count {
            text.push(' ');
            text.push_str(self.words.choose(rng).copied().unwrap_or(FIRST));
        }
    }
}

/// Tokens of the prompt that asks `text`.
async fn count(connection: &mut Connection, model: &str, text: &str) -> anyhow::Result<usize> {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": 1,
    });
    let answer: Answer = connection
        .json(Method::POST, "/v1/chat/completions", Bytes::from(body.to_string()))
        .await
        .context("calibration request")?;
    Ok(answer.usage.prompt_tokens)
}

fn rng(seed: u64, stream: u64) -> StdRng {
    // Any odd multiplier keeps distinct pairs distinct streams; this one is 2^64 divided by the golden ratio.
    StdRng::seed_from_u64(seed.rotate_left(32) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn prompts(line: &[&str]) -> Prompts {
        let command = LoadArgs::augment_args(Command::new("bench").no_binary_name(true));
        let args = LoadArgs::from_arg_matches(&command.try_get_matches_from(line).unwrap()).unwrap();
        Prompts { words: WORDS.to_vec(), overhead: 10, args }
    }

    fn words(ask: &Ask) -> Vec<&str> {
        ask.text.split(' ').collect()
    }

    #[test]
    fn lengths_are_exact_and_requests_differ_but_repeat_with_the_seed() {
        let prompts = prompts(&["--isl", "100", "--osl", "5:9"]);
        for n in 0..50 {
            let ask = prompts.ask(n);
            assert_eq!(words(&ask).len(), 91, "90 words after the first, which the overhead counts");
            assert!((5..=9).contains(&ask.max_tokens));
            assert_eq!(ask, prompts.ask(n));
            assert_ne!(ask.text, prompts.ask(n + 1).text);
        }
    }

    #[test]
    fn prompts_of_a_group_begin_alike() {
        let prompts = prompts(&["--isl", "100", "--prefix-groups", "3", "--prefix-tokens", "40"]);
        let asks: Vec<Ask> = (0..60).map(|n| prompts.ask(n)).collect();
        let heads: std::collections::BTreeSet<String> =
            asks.iter().map(|ask| words(ask)[..41].join(" ")).collect();
        let wholes: std::collections::BTreeSet<&str> = asks.iter().map(|ask| ask.text.as_str()).collect();
        assert_eq!((heads.len(), wholes.len()), (3, 60));
    }

    #[test]
    fn a_template_longer_than_the_input_is_refused_with_both_numbers() {
        let error = prompts(&["--isl", "8"]).check().unwrap_err().to_string();
        assert!(error.contains('8') && error.contains("10"), "{error}");
    }
}
