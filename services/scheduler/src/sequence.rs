use std::{cmp::Reverse, sync::Arc, time::Duration};

use kv::PageId;
use messages::block::{BlockHash, ClusterKey};
use models::{PLACEHOLDER, SamplingParams, SlotId, TokenId};

use crate::{Goal, Micros, RunKey, Usage, slab::Key};

/// What the choices of a request have in common.
#[derive(Debug)]
pub(crate) struct Run {
    pub key: RunKey,
    pub goal: Goal,
    /// None of its choices runs or waits to run.
    pub parked: bool,
    /// Leading blocks that the run itself holds, beside its choices.
    pub hold: Vec<PageId>,
    pub prompt: Arc<[TokenId]>,
    pub params: SamplingParams,
    pub root: BlockHash,
    /// Of the full blocks of the prompt; empty if nothing is cached.
    pub hashes: Vec<BlockHash>,
    /// Output tokens after which a choice has reached its length.
    pub limit: u32,
    pub arrived: Micros,
    pub deadline: Option<Micros>,
    /// The first prompt token whose log probability is still to be planned for; the prompt's length if none is.
    pub score_next: u32,
    pub started: bool,
    /// Choices that have not ended, in the order given.
    pub choices: Vec<Key<Sequence>>,
    pub usage: Usage,
}

impl Run {
    pub fn prompt_len(&self) -> u32 {
        self.prompt.len() as u32
    }

    /// Prompt tokens are still to be scored.
    pub fn is_scoring(&self) -> bool {
        self.score_next < self.prompt_len()
    }

    /// The blocks of the prompt are wanted and no output.
    pub fn is_for_blocks(&self) -> bool {
        matches!(self.goal, Goal::Blocks { .. })
    }

    /// Leading blocks of the prompt that may come from elsewhere. The logits of the last token are wanted, so its block
    /// is not among them; and none may if tokens of the prompt are to be scored, since that takes the logits before them.
    pub fn landable(&self, page_size: u32) -> usize {
        if self.is_scoring() {
            return 0;
        }
        self.hashes.len().min((self.prompt.len() - 1) / page_size as usize)
    }

    /// Is there anything to compute for a choice with this much output?
    pub fn has_work(&self, output: &[TokenId], first: bool) -> bool {
        (output.len() as u32) < self.limit || (first && self.is_scoring()) || self.is_for_blocks()
    }

    /// The stop token that `output` ends with.
    pub fn stop(&self, output: &[TokenId]) -> Option<TokenId> {
        let last = *output.last()?;
        let stops = output.len() > self.params.min_tokens as usize && self.params.stop_ids.contains(&last);
        stops.then_some(last)
    }
}

/// Order of service: higher priority, then earlier arrival, then earlier admission, then the order of choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub priority: Reverse<i32>,
    pub arrived: Micros,
    pub admission: u64,
    pub choice: u32,
}

/// One choice of a request: waiting, or running with a slot and blocks.
///
/// Its tokens are the prompt, the output, and `pending` tokens that steps in flight will add to the output.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub run: Key<Run>,
    pub choice: u32,
    pub rank: Rank,
    pub output: Vec<TokenId>,
    /// Of the full blocks after the prompt's, as far as they were needed.
    pub tail_hashes: Vec<BlockHash>,
    /// Tokens sampled by steps in flight.
    pub pending: u32,
    /// Times that the sequence entered the batch: KV computed in an earlier residence is gone.
    pub residence: u32,
    pub running: Option<Residence>,
}

/// What a sequence holds while it runs.
#[derive(Debug)]
pub(crate) struct Residence {
    pub slot: SlotId,
    /// The executor knows the sequence.
    pub opened: bool,
    /// Block `i` holds positions `i * page_size ..`.
    pub pages: Vec<PageId>,
    /// Positions whose KV is computed once the planned steps have run.
    pub computed: u32,
    /// Leading blocks that have been computed and given to the cache.
    pub inserted: u32,
    /// To be copied before the first step: the held page of another choice, and the block here.
    pub fork: Option<Fork>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fork {
    pub from: PageId,
    pub to_block: u32,
}

impl Sequence {
    /// Tokens that the host has seen.
    pub fn known(&self, run: &Run) -> u32 {
        run.prompt_len() + self.output.len() as u32
    }

    /// Output tokens that are still to be planned for.
    pub fn remaining_output(&self, run: &Run) -> u32 {
        run.limit.saturating_sub(self.output.len() as u32 + self.pending)
    }

    /// Tokens that must have been computed for the sequence to go on: all of them while there is more to sample, all
    /// of the prompt but its last, which predicts nothing of it, while there is only that to score, and all of a prompt
    /// whose blocks are wanted.
    pub fn target(&self, run: &Run) -> u32 {
        if self.remaining_output(run) > 0 {
            self.known(run) + self.pending
        } else if run.is_for_blocks() {
            run.prompt_len()
        } else if run.is_scoring() {
            run.prompt_len() - 1
        } else {
            0
        }
    }

    /// Appends tokens `start..end` as far as they are known; a pending one becomes a placeholder.
    pub fn copy_tokens(&self, run: &Run, start: u32, end: u32, out: &mut Vec<TokenId>) {
        let (start, end, prompt) = (start as usize, end as usize, run.prompt.len());
        out.extend_from_slice(&run.prompt[start.min(prompt)..end.min(prompt)]);
        let output = |at: usize| at.saturating_sub(prompt).min(self.output.len());
        out.extend_from_slice(&self.output[output(start)..output(end)]);
        let known = prompt + self.output.len();
        out.extend((start.max(known)..end).map(|_| PLACEHOLDER));
    }

    /// The name of block `index`, computed already.
    pub fn hash(&self, run: &Run, index: u32) -> BlockHash {
        let index = index as usize;
        run.hashes.get(index).copied().unwrap_or_else(|| self.tail_hashes[index - run.hashes.len()])
    }

    pub fn parent(&self, run: &Run, index: u32) -> BlockHash {
        index.checked_sub(1).map_or(run.root, |before| self.hash(run, before))
    }

    /// Computes the names of the first `blocks` blocks; their tokens must be known.
    pub fn hash_blocks(
        &mut self,
        run: &Run,
        blocks: u32,
        page_size: u32,
        key: &ClusterKey,
        scratch: &mut Vec<TokenId>,
    ) {
        for index in (run.hashes.len() + self.tail_hashes.len()) as u32..blocks {
            scratch.clear();
            self.copy_tokens(run, index * page_size, (index + 1) * page_size, scratch);
            self.tail_hashes.push(key.child(self.parent(run, index), scratch, &[]));
        }
    }

    /// Time since arrival.
    pub fn waited(&self, now: Micros) -> Duration {
        now.since(self.rank.arrived)
    }
}
