//! An executor whose "KV" shows every mistake of a scheduler in the tokens.
//!
//! The KV of a position is a hash of its token and the KV of the position before it, read from the pages as an
//! attention kernel would. A sampled token hashes the KV of all positions, the choice and the output position. So a
//! wrong page, a missing copy, a page reused too early, a chunk out of place or a wrong placeholder gives another
//! token than the sequence would have alone.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use models::{
    Batch, Executor, ExecutorError, ExecutorSpec, KvLayout, Logprobs, Outputs, PLACEHOLDER, PageSink,
    Sampled, SamplingBounds, SamplingParams, Scored, SequenceStep, SlotId, StepId, Ticket, TokenId,
    TokenLogprob,
};
use scheduler::EndReason;

pub const VOCAB: u32 = 23;

pub struct FakeExecutor {
    spec: ExecutorSpec,
    /// Microseconds per input token.
    pub token_cost: u64,
    pages: Vec<Vec<u64>>,
    slots: Vec<Option<Slot>>,
    finished: VecDeque<(StepId, Outputs)>,
    last_step: StepId,
    sink: Option<Arc<dyn PageSink>>,
    /// Input tokens of all steps.
    pub computed: u64,
    /// Logits that this token leads to are not finite.
    pub spoiled: Option<TokenId>,
}

struct Slot {
    params: SamplingParams,
    choice: u32,
    outputs: u32,
    sampled: Option<TokenId>,
}

pub fn spec(pages: u32, page_size: u32, slots: u32, max_batch_tokens: u32, depth: u32) -> ExecutorSpec {
    ExecutorSpec {
        device: "fake",
        pages,
        page_size,
        slots,
        max_batch_tokens,
        depth,
        vocab_size: VOCAB,
        context_length: 64,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "fake".to_owned(), layers: 1, layer_bytes: 8 * page_size },
        numerics_class: "fake".to_owned(),
    }
}

impl FakeExecutor {
    pub fn new(spec: ExecutorSpec) -> Self {
        Self {
            token_cost: 100,
            pages: vec![vec![0; spec.page_size as usize]; spec.pages as usize],
            slots: (0..spec.slots).map(|_| None).collect(),
            finished: VecDeque::new(),
            sink: None,
            last_step: StepId(0),
            computed: 0,
            spoiled: None,
            spec,
        }
    }

    /// A step was planned and refused.
    pub fn skip_step(&mut self) {
        self.last_step.0 += 1;
    }

    pub fn open_slots(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    fn slot(&mut self, slot: SlotId) -> &mut Slot {
        self.slots[slot.0 as usize].as_mut().expect("the slot of a sequence is open")
    }

    fn run(&mut self, batch: &Batch, row: &SequenceStep, outputs: &mut Outputs) {
        let table: Vec<u32> = batch.pages[row.pages.start as usize..row.pages.end as usize].to_vec();
        let mut tokens = batch.tokens[row.tokens.start as usize..row.tokens.end as usize].to_vec();
        assert!(!tokens.is_empty());
        if tokens == [PLACEHOLDER] {
            tokens[0] = self.slot(row.slot).sampled.expect("a placeholder stands for a sampled token");
        }
        assert!(tokens.iter().all(|token| *token < VOCAB), "a placeholder in a chunk");
        let page_size = self.spec.page_size as usize;
        let cell = |position: usize| (table[position / page_size] as usize, position % page_size);
        let mut scores = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let position = row.start as usize + index;
            let before =
                position.checked_sub(1).map_or(0, |before| self.pages[cell(before).0][cell(before).1]);
            self.pages[cell(position).0][cell(position).1] = mix(before, u64::from(*token));
            let next = tokens.get(index + 1).copied().or(row.score.and_then(|score| score.next));
            if let (Some(score), Some(next)) = (row.score, next)
                && index >= score.from as usize
            {
                let read = (0..=position).map(|position| self.pages[cell(position).0][cell(position).1]);
                scores.push(score_of(attend(read), next));
            }
        }
        if row.score.is_some() {
            outputs.scored.push(Scored { slot: row.slot, tokens: scores });
        }
        if !row.sample {
            return;
        }
        let last = row.start as usize + tokens.len() - 1;
        let read = attend((0..=last).map(|position| self.pages[cell(position).0][cell(position).1]));
        let slot = self.slot(row.slot);
        let token = draw(read, slot.choice, slot.outputs, &slot.params);
        slot.outputs += 1;
        slot.sampled = Some(token);
        let logprob = (slot.params.logprobs != Logprobs::Off).then_some(-(token as f32));
        let finite = !tokens.iter().any(|token| Some(*token) == self.spoiled);
        outputs.sampled.push(Sampled { slot: row.slot, token, finite, logprob, top: Vec::new() });
    }
}

impl Executor for FakeExecutor {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        assert!(self.finished.len() < self.spec.depth as usize, "too many steps in flight");
        assert_eq!(batch.step.0, self.last_step.0 + 1);
        assert!(batch.tokens.len() <= self.spec.max_batch_tokens as usize, "too many tokens");
        assert!(!batch.sequences.is_empty());
        self.last_step = batch.step;
        for slot in &batch.closes {
            assert!(self.slots[slot.0 as usize].take().is_some(), "closed a slot that is not open");
        }
        let originals = self.pages.clone();
        for copy in &batch.copies {
            self.pages[copy.to as usize] = originals[copy.from as usize].clone();
        }
        for open in &batch.opens {
            let outputs = open.output.len() as u32;
            let slot = Slot { params: open.params.clone(), choice: open.choice, outputs, sampled: None };
            assert!(self.slots[open.slot.0 as usize].replace(slot).is_none(), "opened a slot that is open");
        }
        let mut outputs = Outputs::default();
        let mut seen = Vec::new();
        for row in &batch.sequences {
            assert!(!seen.contains(&row.slot), "two rows for one slot");
            seen.push(row.slot);
            self.run(batch, row, &mut outputs);
        }
        for export in &batch.exports {
            let Some(sink) = &self.sink else { break };
            sink.layer(export, 0, &bytes(&self.pages[export.page as usize]));
        }
        self.computed += batch.tokens.len() as u64;
        outputs.elapsed = Duration::from_micros(self.token_cost * batch.tokens.len() as u64);
        self.finished.push_back((batch.step, outputs));
        Ok(Ticket(batch.step))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError> {
        let (step, outputs) = self.finished.pop_front().expect("a step is in flight");
        assert_eq!(step, ticket.0);
        Ok(outputs)
    }

    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        to.copy_from_slice(&bytes(&self.pages[page as usize]));
        Ok(())
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        let (cells, _) = from.as_chunks::<8>();
        self.pages[page as usize] = cells.iter().map(|cell| u64::from_le_bytes(*cell)).collect();
        Ok(())
    }

    fn export_to(&mut self, sink: Arc<dyn PageSink>) {
        self.sink = Some(sink);
    }
}

fn bytes(cells: &[u64]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_le_bytes()).collect()
}

/// The contents of block `block` of a prompt, as [`Executor::read_page`] gives them.
pub fn block_of(prompt: &[TokenId], block: u32, page_size: u32) -> Vec<u8> {
    let start = (block * page_size) as usize;
    bytes(&chain(prompt)[start..start + page_size as usize])
}

fn mix(a: u64, b: u64) -> u64 {
    let mixed = (a ^ b.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (mixed >> 32)
}

fn attend(cells: impl Iterator<Item = u64>) -> u64 {
    cells.fold(0, mix)
}

fn draw(read: u64, choice: u32, position: u32, params: &SamplingParams) -> TokenId {
    let drawn = mix(mix(mix(read, u64::from(choice)), u64::from(position)), params.seed);
    let mut token = (drawn % u64::from(VOCAB)) as TokenId;
    while position < params.min_tokens && params.stop_ids.contains(&token) {
        token = (token + 1) % VOCAB;
    }
    token
}

fn score_of(read: u64, next: TokenId) -> (f32, Vec<TokenLogprob>) {
    (-((mix(read, u64::from(next)) % 1000) as f32), Vec::new())
}

fn chain(tokens: &[TokenId]) -> Vec<u64> {
    let mut cells = Vec::new();
    for token in tokens {
        cells.push(mix(cells.last().copied().unwrap_or(0), u64::from(*token)));
    }
    cells
}

/// The whole output of a choice that runs alone and is never disturbed.
pub fn alone(
    prompt: &[TokenId],
    choice: u32,
    params: &SamplingParams,
    limit: u32,
) -> (Vec<TokenId>, EndReason) {
    let mut tokens = prompt.to_vec();
    for position in 0..limit {
        let token = draw(attend(chain(&tokens).into_iter()), choice, position, params);
        tokens.push(token);
        if position >= params.min_tokens && params.stop_ids.contains(&token) {
            return (tokens.split_off(prompt.len()), EndReason::Stop(token));
        }
    }
    (tokens.split_off(prompt.len()), EndReason::Length)
}

/// Scores of the prompt's tokens from `from` on.
pub fn scores(prompt: &[TokenId], from: u32) -> Vec<(f32, Vec<TokenLogprob>)> {
    let cells = chain(prompt);
    (from.max(1) as usize..prompt.len())
        .map(|index| score_of(attend(cells[..index].iter().copied()), prompt[index]))
        .collect()
}
