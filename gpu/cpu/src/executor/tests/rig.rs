//! Drives an executor as a scheduler would: pages, slots and steps, without any policy.

use models::{
    Batch, Executor, Export, Model, OpenSlot, Outputs, PageCopy, SamplingParams, Score, SequenceStep, SlotId,
    StepId, TokenId,
};

use crate::{CpuConfig, CpuExecutor, KvBudget, KvDtype, Precision};

/// An executor with its free pages.
pub struct Rig {
    pub cpu: CpuExecutor,
    free: Vec<u32>,
    step: u64,
    next: Batch,
}

/// An open sequence.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub slot: SlotId,
    pub pages: Vec<u32>,
    /// Positions whose keys and values are stored.
    pub len: u32,
}

/// What a sequence does in a step.
pub struct Work<'a> {
    pub tokens: &'a [TokenId],
    pub sample: bool,
    pub score: Option<Score>,
}

pub fn f32_config() -> CpuConfig {
    CpuConfig {
        threads: 2,
        kv_dtype: KvDtype::F32,
        kv: KvBudget::Pages(96),
        slots: 16,
        max_batch_tokens: 96,
        precision: Precision::F32,
        ..CpuConfig::default()
    }
}

pub fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

impl Rig {
    pub fn new(model: &Model, config: &CpuConfig) -> Self {
        let cpu = CpuExecutor::new(model, config, &mut |_| {}).unwrap();
        let free = (0..cpu.spec().pages).rev().collect();
        Self { cpu, free, step: 0, next: Batch::default() }
    }

    /// Hands out free pages in another order from now on.
    pub fn shuffle_pages(&mut self, mut random: impl FnMut(usize) -> usize) {
        for i in (1..self.free.len()).rev() {
            self.free.swap(i, random(i + 1));
        }
    }

    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    pub fn open(&mut self, slot: u32, params: SamplingParams, choice: u32, prompt: &[TokenId]) -> Sequence {
        self.open_again(slot, params, choice, prompt, &[])
    }

    pub fn open_again(
        &mut self,
        slot: u32,
        params: SamplingParams,
        choice: u32,
        prompt: &[TokenId],
        output: &[TokenId],
    ) -> Sequence {
        let slot = SlotId(slot);
        self.next.opens.push(OpenSlot { slot, params, choice, prompt: prompt.into(), output: output.into() });
        Sequence { slot, pages: Vec::new(), len: 0 }
    }

    /// Closes a sequence and frees its pages, but for the first `shared`.
    pub fn close(&mut self, sequence: Sequence, shared: usize) {
        self.next.closes.push(sequence.slot);
        self.free.extend(&sequence.pages[shared..]);
    }

    /// Begins `sequence` with the first `positions` positions of `other`: whole pages are shared, one that is partly
    /// filled is copied.
    pub fn share(&mut self, sequence: &mut Sequence, other: &Sequence, positions: u32) {
        let page_size = self.cpu.spec().page_size;
        sequence.pages = other.pages[..(positions / page_size) as usize].to_vec();
        if !positions.is_multiple_of(page_size) {
            let to = self.free.pop().unwrap();
            self.next.copies.push(PageCopy { from: other.pages[sequence.pages.len()], to });
            sequence.pages.push(to);
        }
        sequence.len = positions;
    }

    /// Adds a sequence to the next step.
    pub fn add(&mut self, sequence: &mut Sequence, work: Work<'_>) {
        let end = sequence.len + work.tokens.len() as u32;
        while (sequence.pages.len() as u32) * self.cpu.spec().page_size < end {
            sequence.pages.push(self.free.pop().expect("a free page"));
        }
        let batch = &mut self.next;
        let tokens = batch.tokens.len() as u32..(batch.tokens.len() + work.tokens.len()) as u32;
        let pages = batch.pages.len() as u32..(batch.pages.len() + sequence.pages.len()) as u32;
        batch.tokens.extend_from_slice(work.tokens);
        batch.pages.extend_from_slice(&sequence.pages);
        batch.sequences.push(SequenceStep {
            slot: sequence.slot,
            tokens,
            start: sequence.len,
            pages,
            sample: work.sample,
            score: work.score,
        });
        sequence.len = end;
    }

    /// Wants what the next step makes of a page, as that block of run 0.
    pub fn export(&mut self, page: u32, block: u32) {
        self.next.exports.push(Export { page, run: 0, block });
    }

    pub fn run(&mut self) -> Outputs {
        self.step += 1;
        let mut batch = std::mem::take(&mut self.next);
        batch.step = StepId(self.step);
        let ticket = self.cpu.submit(&batch).unwrap();
        self.cpu.collect(ticket).unwrap()
    }

    /// One sequence, one step.
    pub fn run_one(&mut self, sequence: &mut Sequence, tokens: &[TokenId]) -> TokenId {
        self.add(sequence, Work { tokens, sample: true, score: None });
        self.run().sampled[0].token
    }
}

/// A small generator of random numbers, the same on every machine.
pub struct Random(pub u64);

impl Random {
    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<TokenId> {
        (0..n).map(|_| self.below(vocab) as TokenId).collect()
    }
}
