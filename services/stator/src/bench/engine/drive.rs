//! Feeds an executor with prompts and decode steps, and times them.

use std::time::Instant;

use models::{Batch, Executor, OpenSlot, Outputs, SamplingParams, SequenceStep, SlotId, StepId, TokenId};

/// Sequences in slots 0.., each with its own run of pages.
pub struct Driver<'a> {
    executor: &'a mut dyn Executor,
    pages_each: u32,
    chunk: u32,
    step: StepId,
    open: u32,
}

impl<'a> Driver<'a> {
    pub fn new(executor: &'a mut dyn Executor, pages_each: u32, chunk: u32) -> Self {
        Self { executor, pages_each, chunk, step: StepId(0), open: 0 }
    }

    /// Prompt tokens a second over one prompt of `length`, its first output token included.
    pub fn prefill(&mut self, length: u32) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.prompts(1, length)?;
        Ok(f64::from(length) / began.elapsed().as_secs_f64())
    }

    /// Output tokens a second of `batch` sequences, each after `context` tokens.
    pub fn decode(&mut self, batch: u32, context: u32, tokens: u32) -> anyhow::Result<f64> {
        let mut last = self.prompts(batch, context)?;
        let began = Instant::now();
        for position in context..context + tokens {
            let mut step = Batch::default();
            for (slot, token) in (0..batch).zip(&last) {
                self.add(&mut step, slot, position, &[*token], true);
            }
            last = sampled(&self.run(step)?);
        }
        Ok(f64::from(batch * tokens) / began.elapsed().as_secs_f64())
    }

    /// Opens `count` sequences anew and computes their prompts; returns the first output token of each.
    fn prompts(&mut self, count: u32, length: u32) -> anyhow::Result<Vec<TokenId>> {
        let mut first = Batch { closes: (0..self.open).map(SlotId).collect(), ..Batch::default() };
        self.open = count;
        first.opens = (0..count).map(open).collect();
        let (mut pending, mut tokens) = (Some(first), Vec::new());
        for slot in 0..count {
            let prompt = self.prompt(slot, length);
            for (number, piece) in prompt.chunks(self.chunk as usize).enumerate() {
                let start = number as u32 * self.chunk;
                let mut batch = pending.take().unwrap_or_default();
                self.add(&mut batch, slot, start, piece, start + piece.len() as u32 == length);
                tokens.extend(sampled(&self.run(batch)?));
            }
        }
        Ok(tokens)
    }

    /// Any tokens do: the work does not depend on them.
    fn prompt(&self, slot: u32, length: u32) -> Vec<TokenId> {
        (0..length).map(|at| (slot * 7919 + at * 104_729 + 11) % self.executor.spec().vocab_size).collect()
    }

    fn add(&self, batch: &mut Batch, slot: u32, start: u32, tokens: &[TokenId], sample: bool) {
        let (first_token, first_page) = (batch.tokens.len() as u32, batch.pages.len() as u32);
        batch.tokens.extend_from_slice(tokens);
        let end = start + tokens.len() as u32;
        let pages = end.div_ceil(self.executor.spec().page_size);
        batch.pages.extend((0..pages).map(|page| slot * self.pages_each + page));
        batch.sequences.push(SequenceStep {
            slot: SlotId(slot),
            tokens: first_token..batch.tokens.len() as u32,
            start,
            pages: first_page..batch.pages.len() as u32,
            sample,
            score: None,
        });
    }

    fn run(&mut self, mut batch: Batch) -> anyhow::Result<Outputs> {
        self.step = StepId(self.step.0 + 1);
        batch.step = self.step;
        let ticket = self.executor.submit(&batch)?;
        Ok(self.executor.collect(ticket)?)
    }
}

fn open(slot: u32) -> OpenSlot {
    OpenSlot {
        slot: SlotId(slot),
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        choice: 0,
        prompt: Vec::new(),
        output: Vec::new(),
    }
}

fn sampled(outputs: &Outputs) -> Vec<TokenId> {
    outputs.sampled.iter().map(|sampled| sampled.token).collect()
}
