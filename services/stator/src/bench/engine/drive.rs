//! Feeds scheduler and executor with requests, and times what comes out.

use std::{collections::HashSet, time::Instant};

use anyhow::ensure;
use engine::offline::Offline;
use models::TokenId;
use rand::{Rng, SeedableRng, rngs::StdRng};
use scheduler::{Event, RunKey};

/// Output tokens of a sequence beyond those that are measured: not all begin and end in one step.
const MARGIN: u32 = 8;

/// Measures one after the other, each with prompts of its own.
pub struct Driver {
    engine: Offline,
    prompts: u32,
}

/// What a measurement of decoding saw.
pub struct Decoded {
    /// Output tokens a second.
    pub rate: f64,
    /// Tokens of KV that a step read, on average.
    pub kv_tokens: f64,
}

impl Driver {
    pub fn new(engine: Offline) -> Self {
        Self { engine, prompts: 0 }
    }

    /// Prompt tokens a second over one prompt of `length`, its first output token included.
    pub fn prefill(&mut self, length: u32) -> anyhow::Result<f64> {
        let prompt = self.prompt(length);
        let began = Instant::now();
        self.engine.admit(prompt, 1)?;
        self.finish()?;
        Ok(f64::from(length) / began.elapsed().as_secs_f64())
    }

    /// `batch` sequences at once for `tokens` output tokens, over which each holds `context` on average, a tenth more or less.
    pub fn decode(&mut self, batch: u32, context: u32, tokens: u32) -> anyhow::Result<Decoded> {
        let lengths: Vec<u32> = draw(context, batch).into_iter().map(|held| held - growth(tokens)).collect();
        let mut held: u32 = lengths.iter().sum();
        let prompts: Vec<Vec<TokenId>> = lengths.into_iter().map(|length| self.prompt(length)).collect();
        // Once through, so that all find their prompts in the cache and decode from the same step on.
        for prompt in &prompts {
            self.engine.admit(prompt.clone(), 1)?;
        }
        self.finish()?;
        for prompt in prompts {
            self.engine.admit(prompt, tokens + MARGIN)?;
        }
        let (mut begun, mut events) = (HashSet::<RunKey>::new(), Vec::new());
        while begun.len() < batch as usize {
            ensure!(self.engine.step(&mut events)?, "not all of {batch} sequences began");
            for event in events.drain(..) {
                match event {
                    // The first token is computed with the prompt alone, each later one with those before it.
                    Event::Token { run, .. } => held += u32::from(!begun.insert(run)),
                    Event::Ended { .. } => {
                        let spec = self.engine.spec();
                        let room = u64::from(spec.pages) * u64::from(spec.page_size);
                        anyhow::bail!(
                            "{batch} sequences of {context} tokens do not run at once: {} may, with KV for {room} tokens \
                             (--max-running-requests, --max-total-tokens)",
                            spec.slots
                        );
                    }
                    _ => {}
                }
            }
        }
        let (began, mut put_out) = (Instant::now(), 0);
        let elapsed = loop {
            ensure!(self.engine.step(&mut events)?, "sequences ended early");
            if events.drain(..).filter(|event| matches!(event, Event::Token { .. })).count() < batch as usize
            {
                self.finish()?;
                anyhow::bail!("a sequence ended early");
            }
            put_out += batch;
            if put_out == batch * tokens {
                break began.elapsed();
            }
        };
        self.finish()?;
        let kv_tokens = f64::from(held) + f64::from(batch * (tokens + 1)) / 2.0;
        Ok(Decoded { rate: f64::from(put_out) / elapsed.as_secs_f64(), kv_tokens })
    }

    pub fn engine(&self) -> &Offline {
        &self.engine
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let mut events = Vec::new();
        while self.engine.step(&mut events)? {
            events.clear();
        }
        Ok(())
    }

    /// Any tokens do: the work does not depend on them. No two prompts begin alike.
    fn prompt(&mut self, length: u32) -> Vec<TokenId> {
        self.prompts += 1;
        let (seed, vocab) = (u64::from(self.prompts), u64::from(self.engine.spec().vocab_size));
        (0..u64::from(length)).map(|at| ((seed * 7919 + at * 104_729 + 11) % vocab) as TokenId).collect()
    }
}

/// By how much a sequence has grown on average while `tokens` of its output are measured: they follow its first one, and one
/// more where not all begin in one step.
fn growth(tokens: u32) -> u32 {
    tokens / 2 + 1
}

/// Whether sequences that hold `context` on average have a prompt to begin with.
pub fn begins(context: u32, tokens: u32) -> bool {
    context - context / 10 > growth(tokens)
}

/// What sequences hold on average: nine to eleven tenths of the nominal length, the same in each run.
fn draw(nominal: u32, count: u32) -> Vec<u32> {
    if count == 1 {
        return vec![nominal];
    }
    let mut rng = StdRng::seed_from_u64(count.into());
    (0..count).map(|_| rng.random_range(nominal - nominal / 10..=nominal + nominal / 10)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_a_tenth_more_or_less_than_the_nominal_one() {
        let drawn = draw(1000, 256);
        assert!(drawn.iter().all(|length| (900..=1100).contains(length)));
        assert!(drawn.iter().sum::<u32>().abs_diff(256_000) < 5000);
        assert_eq!(drawn, draw(1000, 256));
        assert_eq!(draw(1000, 1), [1000]);
    }

    #[test]
    fn the_shortest_context_is_longer_than_what_grows() {
        assert!(begins(48, 64) && begins(1000, 64));
        assert!(!begins(36, 64) && !begins(48, 86));
    }
}
