//! Steps of one executor, timed: sequences that decode, prompts, and both in one step.

use std::{ops::Range, time::Instant};

use cuda::{CudaError, CudaExecutor, ops::GemmMode};
use models::{
    Batch, Executor, ExecutorError, OpenSlot, PLACEHOLDER, SamplingParams, SequenceStep, SlotId, StepId,
};

use crate::{random::Random, setup::PAGE_SIZE};

/// Steps that are timed, behind the first ones.
pub const STEPS: usize = 24;
const WARM_UP: usize = 4;
/// Longest prompt of a mixed step; more prompt tokens are several prompts.
const MIXED_PROMPT: usize = 1024;
const MIXED_CONTEXT: usize = 1024;

pub struct Steps<'a> {
    pub executor: &'a mut CudaExecutor,
    pub name: &'static str,
    pub mode: GemmMode,
    /// Bytes a second.
    pub read_rate: f64,
    /// How many are timed: see [`STEPS`].
    pub count: usize,
}

/// Milliseconds of a step.
pub struct Medians {
    pub device: f64,
    wall: f64,
}

/// A sequence and its pages.
struct Row {
    /// Tokens that it holds, or those of its prompt.
    tokens: usize,
    table: Vec<u32>,
}

fn lost(error: ExecutorError) -> CudaError {
    CudaError::Shape(error.to_string())
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn open(slot: usize) -> OpenSlot {
    OpenSlot {
        slot: SlotId(slot as u32),
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        choice: 0,
        prompt: Vec::new(),
        output: Vec::new(),
    }
}

fn add_row(
    work: &mut Batch,
    slot: usize,
    start: usize,
    tokens: impl IntoIterator<Item = u32>,
    table: &[u32],
) {
    let (first, page) = (work.tokens.len() as u32, work.pages.len() as u32);
    work.tokens.extend(tokens);
    work.pages.extend(table);
    work.sequences.push(SequenceStep {
        slot: SlotId(slot as u32),
        tokens: first..work.tokens.len() as u32,
        start: start as u32,
        pages: page..work.pages.len() as u32,
        sample: true,
        score: None,
    });
}

impl Steps<'_> {
    /// Greedy decode of a batch, two steps in flight, contexts drawn around the nominal one: what a sequence holds on average
    /// over the steps that are timed. Pages are shuffled.
    pub fn decode(&mut self, nominal: usize, batch: usize) -> Result<(), CudaError> {
        let label = format!("decode, context {nominal}");
        let Some((medians, contexts)) = self.mixed_steps(nominal, batch, 0)? else {
            println!("{:<14}{label} x {batch}: the pool has {} pages", self.name, self.executor.spec().pages);
            return Ok(());
        };
        let token_bytes = self.executor.spec().kv.page_bytes() / PAGE_SIZE as usize;
        let bytes = self.executor.weight_bytes_per_step() as f64 + (contexts * token_bytes) as f64;
        self.print(&label, batch, &medians, Some(bytes / self.read_rate * 1e3));
        Ok(())
    }

    /// The same beside prompts that are computed in every step, whole.
    pub fn mixed(&mut self, decodes: usize, prompt: usize) -> Result<(), CudaError> {
        if let Some((medians, _)) = self.mixed_steps(MIXED_CONTEXT, decodes, prompt)? {
            self.print(&format!("with {prompt} prompt tokens"), decodes, &medians, None);
        }
        Ok(())
    }

    /// One prompt, alone and from its first token on.
    pub fn prefill(&mut self, tokens: usize) -> Result<(), CudaError> {
        let medians = self.prompts(tokens)?;
        self.print(&format!("prefill, {tokens} tokens"), 1, &medians, None);
        Ok(())
    }

    /// Times of a prompt alone.
    pub fn prompts(&mut self, tokens: usize) -> Result<Medians, CudaError> {
        let (mut device, mut wall) = (Vec::new(), Vec::new());
        for step in 0..4u64 {
            let mut work = Batch { step: StepId(step + 1), opens: vec![open(0)], ..Batch::default() };
            work.closes.extend((step > 0).then_some(SlotId(0)));
            let table = Random::new(step).shuffled(tokens.div_ceil(PAGE_SIZE as usize));
            add_row(&mut work, 0, 0, prompt_tokens(step, tokens), &table);
            let begin = Instant::now();
            let ticket = self.executor.submit(&work).map_err(lost)?;
            device.push(self.executor.collect(ticket).map_err(lost)?.elapsed.as_secs_f64() * 1e3);
            wall.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        self.close(0..1)?;
        Ok(Medians { device: median(&mut device[1..]), wall: median(&mut wall[1..]) })
    }

    /// Times of steps, and the sum of the contexts drawn; `None` if the pool is too small for them.
    pub fn mixed_steps(
        &mut self,
        nominal: usize,
        decodes: usize,
        prompt: usize,
    ) -> Result<Option<(Medians, usize)>, CudaError> {
        let room = self.count + WARM_UP + 2;
        let mut random = Random::new(5);
        let mut pages = random.shuffled(self.executor.spec().pages as usize);
        let mut row = |tokens: usize, room: usize| {
            let count = (tokens + room).div_ceil(PAGE_SIZE as usize);
            Some(Row { tokens, table: pages.split_off(pages.len().checked_sub(count)?) })
        };
        let contexts: Vec<usize> =
            (0..decodes).map(|_| random.between(nominal * 9 / 10, nominal * 11 / 10)).collect();
        let sum = contexts.iter().sum();
        // a step adds one: the first that is timed is step WARM_UP, the last that is timed two before `count + WARM_UP`
        let grown = WARM_UP + (self.count - 2) / 2;
        let decoding: Option<Vec<Row>> =
            contexts.into_iter().map(|context| row(context - grown, room)).collect();
        let prompts: Option<Vec<Row>> =
            (0..prompt).step_by(MIXED_PROMPT).map(|at| row(MIXED_PROMPT.min(prompt - at), 0)).collect();
        let (Some(decoding), Some(prompts)) = (decoding, prompts) else { return Ok(None) };

        let (mut device, mut wall, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
        let prompt_slots = decodes..decodes + prompts.len();
        let mut last = Instant::now();
        for step in 0..self.count + WARM_UP {
            let mut work = Batch { step: StepId(step as u64 + 1), ..Batch::default() };
            if step == 0 {
                work.opens.extend((0..decodes).map(open));
            } else {
                work.closes.extend(prompt_slots.clone().map(|slot| SlotId(slot as u32)));
            }
            work.opens.extend(prompt_slots.clone().map(open));
            for (slot, row) in decoding.iter().enumerate() {
                let token = if step == 0 { slot as u32 } else { PLACEHOLDER };
                add_row(&mut work, slot, row.tokens + step - 1, [token], &row.table);
            }
            for (slot, row) in prompt_slots.clone().zip(&prompts) {
                add_row(&mut work, slot, 0, prompt_tokens((step + slot) as u64, row.tokens), &row.table);
            }
            tickets.push(self.executor.submit(&work).map_err(lost)?);
            if tickets.len() == 2 {
                let outputs = self.executor.collect(tickets.remove(0)).map_err(lost)?;
                device.push(outputs.elapsed.as_secs_f64() * 1e3);
                wall.push(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
        }
        for ticket in tickets {
            self.executor.collect(ticket).map_err(lost)?;
        }
        self.close(0..prompt_slots.end)?;
        let medians = Medians { device: median(&mut device[WARM_UP..]), wall: median(&mut wall[WARM_UP..]) };
        Ok(Some((medians, sum)))
    }

    fn close(&mut self, slots: Range<usize>) -> Result<(), CudaError> {
        let closes = slots.map(|slot| SlotId(slot as u32)).collect();
        let close = Batch { step: StepId(1000), closes, ..Batch::default() };
        let ticket = self.executor.submit(&close).map_err(lost)?;
        self.executor.collect(ticket).map_err(lost)?;
        Ok(())
    }

    fn print(&self, step: &str, batch: usize, Medians { device, wall }: &Medians, floor: Option<f64>) {
        let mode = format!("{:?}", self.mode);
        let floor =
            floor.map_or_else(String::new, |floor| format!("{floor:>9.3}{:>9.1}", floor / wall * 100.0));
        println!("{:<14}{mode:<16}{step:<24}{batch:>6}{device:>10.3}{wall:>10.3}{floor}", self.name);
    }
}

fn prompt_tokens(seed: u64, count: usize) -> impl Iterator<Item = u32> {
    (0..count as u32).map(move |i| (i * 7919 + seed as u32) % 150_000)
}
