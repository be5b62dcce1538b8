use std::{ops::Range, sync::Arc, time::Duration};

use crate::{SamplingBounds, SamplingParams, TokenId};

/// Runs steps of one decoder on one device: `submit` starts a batch, `collect` waits for its outputs. At most
/// [`ExecutorSpec::depth`] tickets are open at once and they are collected in order.
///
/// Steps take effect in the order in which they are submitted: a page that one step still reads may be written by the
/// next.
///
/// Lives on one thread, the device thread, and is driven by one scheduler.
pub trait Executor {
    fn spec(&self) -> &ExecutorSpec;

    /// Starts a step. The batch may be reused by the caller as soon as this returns.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if the batch breaks the contract of [`Batch`]: nothing was started.
    /// [`ExecutorError::Device`] if the device is lost: the process must end.
    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError>;

    /// Waits for the step of `ticket` and returns what it sampled and scored.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] if the device is lost: the process must end.
    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError>;

    /// Whether [`Self::collect`] of the oldest step under way would not wait. An executor that cannot tell says so.
    fn is_done(&self) -> bool {
        true
    }

    /// Copies a page out, laid out as [`ExecutorSpec::kv`] says. Takes effect in order with steps: after those that
    /// were submitted, before those to come. An executor of depth 1 does it only while no step is in flight.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if there is no such page, `to` is not as long as a page, or a step is in flight.
    /// [`ExecutorError::Device`] if the device is lost.
    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError>;

    /// Fills a page with what [`Self::read_page`] gave, in order with steps likewise. Without [`Self::has_room`] it waits for
    /// steps that were submitted.
    ///
    /// # Errors
    /// As of [`Self::read_page`].
    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError>;

    /// Whether one call more of [`Self::write_page`], [`Self::push_pages`] or [`Self::pull_pages`] finds room for what it
    /// starts. There may be none while earlier ones are under way.
    fn has_room(&self) -> bool {
        true
    }

    /// Where the layers of [`Batch::exports`] go; called before the first step. An executor that cannot hand out layers
    /// while a step runs ignores it: what no sink got is read with [`Self::read_page`].
    fn export_to(&mut self, sink: Arc<dyn PageSink>);

    /// Starts to copy pages to their places. They were computed by steps that have been collected; steps submitted later
    /// do not change what is copied.
    ///
    /// # Errors
    /// As of [`Self::read_page`]; also if the executor has no device memory, or no room.
    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        Err(no_device_memory(moves))
    }

    /// Starts to fill pages from their places, in order with steps. Places must not change until that is done.
    ///
    /// # Errors
    /// As of [`Self::push_pages`].
    fn pull_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        Err(no_device_memory(moves))
    }
}

fn no_device_memory(moves: &[PageMove]) -> ExecutorError {
    ExecutorError::Batch(format!("{} pages are in device memory, which this executor has not", moves.len()))
}

/// A page, and a place for it outside the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageMove {
    pub page: u32,
    /// In the address space of the executor's device; trusted, as page numbers are on the device.
    pub address: u64,
    /// Of the checksum.
    pub seed: u64,
}

/// Pages on their way. Dropping it waits for them.
pub trait Copying: Send {
    fn is_done(&self) -> bool;

    /// Waits, and returns the checksum of each page, as `kv::transfer::device_checksum` defines it.
    ///
    /// # Errors
    /// [`ExecutorError::Device`] if the device is lost.
    fn wait(self: Box<Self>) -> Result<Vec<u64>, ExecutorError>;
}

/// Takes layers of pages while the step that completes them runs.
pub trait PageSink: Send + Sync {
    /// The layer of the page is complete. At most once for each export and layer, layers in order, on any thread; the
    /// step waits meanwhile.
    fn layer(&self, export: &Export, layer: u32, bytes: &[u8]);
}

/// What a scheduler must know of an executor.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutorSpec {
    /// "cpu", "cuda" or "sim".
    pub device: &'static str,
    /// KV pages, numbered from 0.
    pub pages: u32,
    /// Tokens per page.
    pub page_size: u32,
    /// Sequences that may be open at once; slots are numbered from 0.
    pub slots: u32,
    /// Input tokens that one step may carry.
    pub max_batch_tokens: u32,
    /// Steps that may be in flight.
    pub depth: u32,
    pub vocab_size: u32,
    /// Longest sequence, prompt and output, in tokens.
    pub context_length: u32,
    /// What it takes of one sequence's sampling parameters.
    pub sampling: SamplingBounds,
    /// What a page holds.
    pub kv: KvLayout,
    /// Engines of one class compute the same logits bit for bit: weight and KV dtype plus kernel set.
    pub numerics_class: String,
}

/// How the bytes of a page lie: layer after layer, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// Element type and arrangement within a layer: equal names, equal bytes.
    pub name: String,
    pub layers: u32,
    /// Bytes of one layer of a page, keys and values.
    pub layer_bytes: u32,
}

impl KvLayout {
    pub fn page_bytes(&self) -> usize {
        self.layers as usize * self.layer_bytes as usize
    }
}

/// Number of a forward pass, counted from 1 by the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StepId(pub u64);

/// An executor's place for the state of one open sequence (sampling parameters, token counts, last token).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// A step in flight.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(pub StepId);

/// One forward pass over several sequences, in the order: close, copy, open, compute, sample.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub step: StepId,
    /// Slots whose sequences have ended; they may be opened again in the same batch.
    pub closes: Vec<SlotId>,
    /// Whole pages copied before anything is computed (a choice that forks from a partly filled page). They are copied
    /// side by side: no page is copied to twice, or both from and to.
    pub copies: Vec<PageCopy>,
    pub opens: Vec<OpenSlot>,
    /// At most one per slot.
    pub sequences: Vec<SequenceStep>,
    /// Input tokens of all sequences; [`crate::PLACEHOLDER`] only as the single token of a decode step.
    pub tokens: Vec<TokenId>,
    /// Page tables of all sequences.
    pub pages: Vec<u32>,
    /// Pages that this step completes and that somebody wants elsewhere.
    pub exports: Vec<Export>,
}

/// A page to be handed to the [`PageSink`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    pub page: u32,
    /// Whose it is and which of theirs: for the sink, of no meaning to the executor.
    pub run: u64,
    pub block: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    pub from: u32,
    pub to: u32,
}

/// Begins a sequence in a slot.
#[derive(Debug, Clone)]
pub struct OpenSlot {
    pub slot: SlotId,
    pub params: SamplingParams,
    /// The choice number, part of the random counter.
    pub choice: u32,
    /// The prompt, for the repetition penalty; empty if that is 1.
    pub prompt: Vec<TokenId>,
    /// Tokens already put out (a repair or a preemption goes on from them); their number is the output position
    /// of the first token sampled in this slot.
    pub output: Vec<TokenId>,
}

/// One sequence's share of a step: `tokens` at absolute positions `start..`, whose keys and values are written to
/// the pages, attending to everything before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceStep {
    pub slot: SlotId,
    /// Where this step's input tokens lie in [`Batch::tokens`]; not empty.
    pub tokens: Range<u32>,
    /// Absolute position of the first input token.
    pub start: u32,
    /// Where the page table lies in [`Batch::pages`]: page `i` holds positions `i * page_size ..`; covers at least
    /// `start + tokens.len()` positions.
    pub pages: Range<u32>,
    /// Draw a token from the logits of the last input token.
    pub sample: bool,
    /// Report log probabilities of known tokens (prompt log probabilities).
    pub score: Option<Score>,
}

/// For each input token of the step from index `from` on: the log probability of the token that follows it, which
/// is the next input token, or `next` after the last one (`None`: nothing is reported for the last one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    pub from: u32,
    pub next: Option<TokenId>,
}

/// What a step produced.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// One for each sequence with `sample`, in batch order.
    pub sampled: Vec<Sampled>,
    /// One for each sequence with `score`, in batch order.
    pub scored: Vec<Scored>,
    /// Time on the device.
    pub elapsed: Duration,
    /// How long the device stood still between the step before and this one, if the executor can tell.
    pub gap: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub slot: SlotId,
    pub token: TokenId,
    /// Whether the greatest logit, with bias, mask and penalties, was a finite number: else nothing here means anything.
    pub finite: bool,
    /// Of the sampled token, if the slot asks for log probabilities.
    pub logprob: Option<f32>,
    /// The most likely tokens, best first, ties to the lowest id.
    pub top: Vec<TokenLogprob>,
}

/// Log probabilities of input tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub slot: SlotId,
    /// One per scored input token: the log probability of the token that follows it, and the most likely ones there.
    pub tokens: Vec<(f32, Vec<TokenLogprob>)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    pub token: TokenId,
    pub logprob: f32,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error("batch breaks the executor's contract: {0}")]
    Batch(String),
    #[error("device lost: {0}")]
    Device(String),
}
