use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kv::transfer::{Grant, LandedPage};
use messages::{Envelope, InstanceId, RunId, TokenIds, prefill::PrefillTask};

use crate::handover::Handover;

/// A run whose prompt is computed elsewhere.
pub(super) struct Entry {
    pub run: RunId,
    pub prefill: InstanceId,
    pub envelope: Envelope,
    pub handover: Handover,
    pub grant: Option<Grant>,
    /// How much later than here the prompt may be done elsewhere if sequences that decode here are spared by that.
    pub patience: Duration,
    task: PrefillTask,
    /// Pages that landed before one that precedes them, by their place in the grant.
    early: BTreeMap<u32, LandedPage>,
    /// Pages that went to the device.
    offered: u32,
}

impl Entry {
    /// For the whole prompt of `task`, as if nothing of it were here.
    pub fn new(envelope: &Envelope, prefill: InstanceId, task: PrefillTask, patience: Duration) -> Self {
        Self {
            run: task.run,
            prefill,
            envelope: envelope.clone(),
            handover: Handover::new(Instant::now()),
            grant: None,
            patience,
            task,
            early: BTreeMap::new(),
            offered: 0,
        }
    }

    /// Whom to ask for the first `tokens` of the prompt, of which `held` blocks are here.
    pub fn task(&self, held: u32, tokens: u32) -> (InstanceId, Envelope, PrefillTask) {
        let prompt: TokenIds = self.task.prompt.iter().take(tokens as usize).collect();
        let task = PrefillTask { prompt, held_blocks: held, ..self.task.clone() };
        (self.prefill.clone(), self.envelope.clone(), task)
    }

    /// Takes a page in and returns those whose turn has come, with their block in the prompt.
    pub fn in_order(&mut self, page: LandedPage) -> Vec<(u32, LandedPage)> {
        self.early.insert(page.index().0, page);
        let first = self.handover.first();
        std::iter::from_fn(|| {
            let page = self.early.remove(&self.offered)?;
            self.offered += 1;
            Some((first + self.offered - 1, page))
        })
        .collect()
    }
}
