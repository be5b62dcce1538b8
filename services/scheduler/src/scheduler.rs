mod admission;
mod check;
mod collect;
mod handover;
mod intake;
mod prefills;
mod residence;
mod step;

pub use handover::Landing;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use models::{ExecutorSpec, SamplingBounds, SlotId, StepId, TokenId};

use crate::{
    EndReason, KvEvent, Load, Micros, RunKey, SchedulerConfig,
    blocks::Blocks,
    sequence::{Rank, Run, Sequence},
    slab::{Key, Slab},
    speed::{Speed, Work},
};

/// What [`Scheduler::plan`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// The batch is to be submitted.
    Step {
        /// How long the step may take before it must be taken for hung. Generous: a second at least, much more for a
        /// kind of step that was never measured.
        bound: Duration,
    },
    /// No request can go on and no step is in flight.
    Idle,
    /// The oldest step in flight must be collected first.
    Blocked,
}

/// Plans the steps of one executor; see the crate's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    limits: Limits,
    blocks: Blocks,
    runs: Slab<Run>,
    by_key: BTreeMap<RunKey, Key<Run>>,
    sequences: Slab<Sequence>,
    waiting: BTreeMap<Rank, Key<Sequence>>,
    /// Sequences with a slot, by rank.
    running: Vec<Key<Sequence>>,
    free_slots: Vec<SlotId>,
    /// Slots that the executor still holds open for sequences that left.
    closing: Vec<SlotId>,
    in_flight: VecDeque<Flight>,
    step: StepId,
    admissions: u64,
    /// Runs that have not started.
    queued: u32,
    preemptions: u64,
    deadlines: BTreeSet<(Micros, RunKey)>,
    /// To be carried out by the next plan.
    cancels: Vec<(RunKey, Option<u32>)>,
    /// Had ended before they came.
    ended_at_intake: Vec<(Key<Sequence>, EndReason)>,
    speed: Speed,
    /// Prompts are computed elsewhere as a rule: what is left of them here is not to hold up those that decode.
    spares: bool,
    scratch: Scratch,
}

/// What the executor and the configuration allow.
#[derive(Debug)]
struct Limits {
    page_size: u32,
    /// Sequences that run at once; none of them ever lacks a place in a step.
    running: u32,
    step_tokens: u32,
    depth: usize,
    context: u32,
    vocab_size: u32,
    sampling: SamplingBounds,
}

impl Limits {
    fn pages_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page_size)
    }
}

/// A planned step.
#[derive(Debug, Default)]
struct Flight {
    /// In batch order.
    rows: Vec<Row>,
    work: Work,
}

/// What is remembered of a [`models::SequenceStep`] until it is collected.
#[derive(Debug, Clone, Copy)]
struct Row {
    run: Key<Run>,
    sequence: Key<Sequence>,
    residence: u32,
    /// Positions computed when the step has run.
    end: u32,
    sample: bool,
    /// The first prompt token that the row scores.
    score: Option<u32>,
}

/// Buffers that are kept so that steps need not allocate.
#[derive(Debug, Default)]
struct Scratch {
    flights: Vec<Flight>,
    pages: Vec<Vec<kv::PageId>>,
    tokens: Vec<TokenId>,
    sequences: Vec<Key<Sequence>>,
}

impl Scheduler {
    /// A scheduler for an executor without open slots.
    pub fn new(config: SchedulerConfig, executor: &ExecutorSpec) -> Self {
        let pages = config.max_total_tokens.map_or(u32::MAX, |tokens| tokens / executor.page_size);
        let running = config.max_running_requests.unwrap_or(u32::MAX);
        let limits = Limits {
            page_size: executor.page_size,
            running: running.min(executor.slots).min(executor.max_batch_tokens),
            step_tokens: executor.max_batch_tokens,
            depth: executor.depth as usize,
            context: executor.context_length,
            vocab_size: executor.vocab_size,
            sampling: executor.sampling,
        };
        Self {
            blocks: Blocks::new(pages.min(executor.pages), config.radix_cache, config.kv_events),
            runs: Slab::new(),
            by_key: BTreeMap::new(),
            sequences: Slab::new(),
            waiting: BTreeMap::new(),
            running: Vec::with_capacity(limits.running as usize),
            free_slots: (0..limits.running).rev().map(SlotId).collect(),
            closing: Vec::new(),
            in_flight: VecDeque::with_capacity(limits.depth),
            step: StepId(0),
            admissions: 0,
            queued: 0,
            preemptions: 0,
            deadlines: BTreeSet::new(),
            cancels: Vec::new(),
            ended_at_intake: Vec::new(),
            speed: Speed::default(),
            spares: false,
            scratch: Scratch::default(),
            config,
            limits,
        }
    }

    /// The longest sequence, in tokens, that context and KV cache hold. What a request without a bound of its own may
    /// at most ask for is this less its prompt.
    pub fn longest_sequence(&self) -> u32 {
        self.limits.context.min(self.capacity_tokens().try_into().unwrap_or(u32::MAX))
    }

    fn capacity_tokens(&self) -> u64 {
        u64::from(self.blocks.total()) * u64::from(self.limits.page_size)
    }

    /// Whether prompts take only as much of a step as [`SchedulerConfig::step_stretch`] says.
    pub fn spare(&mut self, spares: bool) {
        self.spares = spares && self.config.step_stretch > 0.0;
    }

    /// True if no request is here and no step in flight.
    pub fn is_idle(&self) -> bool {
        self.by_key.is_empty() && self.in_flight.is_empty()
    }

    pub fn load(&self) -> Load {
        let total = self.blocks.total();
        Load {
            running: self.running.len() as u32,
            max_running: self.limits.running,
            queued: self.queued,
            max_queued: self.config.max_queued_requests,
            waiting_choices: self.waiting.len() as u32,
            blocks_used: total - self.blocks.available(),
            blocks_cached: self.blocks.idle(),
            blocks_total: total,
            pending_prefill_tokens: self.pending_prefill_tokens(),
            step_time: self.speed.step_time(),
            prefill_token_time: self.speed.prefill_token_time(),
            preemptions: self.preemptions,
        }
    }

    /// Prompt tokens (and output to be recomputed) that no step has taken up, the prompt of a group counted once.
    fn pending_prefill_tokens(&self) -> u64 {
        let running = self.running.iter().map(|&key| {
            let sequence = &self.sequences[key];
            let computed = sequence.running.as_ref().map_or(0, |residence| residence.computed);
            sequence.known(&self.runs[sequence.run]).saturating_sub(computed)
        });
        let mut previous = None;
        let waiting = self.waiting.values().map(|&key| {
            let sequence = &self.sequences[key];
            let run = &self.runs[sequence.run];
            let shared = previous.replace(sequence.run) == Some(sequence.run);
            if shared { sequence.output.len() as u32 + 1 } else { sequence.known(run) }
        });
        // A sequence that lacks one token only is decoding.
        running.filter(|tokens| *tokens > 1).map(u64::from).sum::<u64>() + waiting.map(u64::from).sum::<u64>()
    }

    /// Appends the changes of the prefix cache since the last call, if [`SchedulerConfig::kv_events`] is on. False:
    /// some were dropped because nobody took them, and whoever follows them needs a snapshot.
    pub fn take_kv_events(&mut self, out: &mut Vec<KvEvent>) -> bool {
        self.blocks.take_events(out)
    }

    /// The whole prefix cache as [`KvEvent::Stored`], parents first.
    pub fn kv_snapshot(&self) -> Vec<KvEvent> {
        self.blocks.snapshot()
    }

    /// Empties the prefix cache, except for blocks that running requests hold.
    pub fn flush_cache(&mut self) {
        self.blocks.clear();
    }
}
