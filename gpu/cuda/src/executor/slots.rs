use models::{OpenSlot, SamplingBounds, SlotId, SlotState};

use super::arena::Arena;
use crate::{
    Buffer, CudaError, Device,
    ops::{BiasEntry, MAX_TOP, SampleParams},
};

/// Entries of a slot's logit bias.
pub(super) const MAX_BIAS: usize = 1024;
/// Stop ids of a slot that `min_tokens` can mask.
pub(super) const MAX_STOPS: usize = 512;

pub(super) const BOUNDS: SamplingBounds =
    SamplingBounds { logit_bias: MAX_BIAS, masked_stops: MAX_STOPS, top_logprobs: MAX_TOP };

/// An open sequence as the host sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Output position of the next token sampled.
    pub position: u32,
    /// How many most likely tokens to report; `None`: no log probabilities.
    pub top: Option<u8>,
    /// A step has sampled for it, so that a placeholder has a meaning.
    pub sampled: bool,
}

/// State of open sequences: what the host must know, and what the sampling kernel reads.
#[derive(Debug)]
pub(super) struct Slots {
    open: Vec<Option<Slot>>,
    vocab: usize,
    /// [slots]
    pub params: Buffer<SampleParams>,
    /// [slots, MAX_BIAS]
    pub bias: Buffer<BiasEntry>,
    /// [slots, MAX_STOPS]
    pub stops: Buffer<u32>,
    /// [slots, vocab]
    pub counts: Buffer<u16>,
    /// [slots, vocab / 32 rounded up]
    pub prompts: Buffer<u32>,
    /// [slots]
    pub last_tokens: Buffer<u32>,
    /// Lists of the sequence that is being opened.
    merged: Vec<BiasEntry>,
    masked: Vec<u32>,
}

impl Slots {
    pub fn new(device: &Device, slots: usize, vocab: usize) -> Result<Self, CudaError> {
        Ok(Self {
            open: vec![None; slots],
            vocab,
            params: device.allocate(slots)?,
            bias: device.allocate(slots * MAX_BIAS)?,
            stops: device.allocate(slots * MAX_STOPS)?,
            counts: device.allocate(slots * vocab)?,
            prompts: device.allocate(slots * vocab.div_ceil(32))?,
            last_tokens: device.allocate(slots)?,
            merged: Vec::new(),
            masked: Vec::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn get(&self, slot: SlotId) -> Option<&Slot> {
        self.open.get(slot.0 as usize)?.as_ref()
    }

    pub fn state(&self, slot: SlotId) -> SlotState {
        match self.get(slot) {
            None => SlotState::Free,
            Some(slot) if slot.sampled => SlotState::Sampled,
            Some(_) => SlotState::Open,
        }
    }

    pub fn close(&mut self, slot: SlotId) {
        if let Some(place) = self.open.get_mut(slot.0 as usize) {
            *place = None;
        }
    }

    /// Words that opening one sequence may copy to the device.
    pub fn open_words(&self) -> usize {
        let bytes =
            size_of::<SampleParams>() + MAX_BIAS * size_of::<BiasEntry>() + MAX_STOPS * size_of::<u32>();
        bytes.div_ceil(4) + self.vocab.div_ceil(2) + self.vocab.div_ceil(32)
    }

    /// Begins a sequence; its state reaches the device in stream order.
    pub fn open(&mut self, device: &Device, arena: &mut Arena, open: &OpenSlot) -> Result<(), CudaError> {
        let (slot, vocab) = (open.slot.0 as usize, self.vocab);
        self.merge_bias(open);
        self.masked.clear();
        self.masked.extend(open.params.masked_stops().iter().filter(|&&id| (id as usize) < vocab));
        let (bias, stops) = (&self.merged, &self.masked);
        let mut params = SampleParams::new(&open.params, open.choice, bias.len() as u32, stops.len() as u32);
        params.top_logprobs = params.top_logprobs.min(vocab as i32);
        arena.copy(device, self.params.slice(slot..=slot), 1, |to| to[0] = params)?;
        let place = self.bias.slice(slot * MAX_BIAS..);
        arena.copy(device, place, bias.len(), |to| to.copy_from_slice(bias))?;
        let place = self.stops.slice(slot * MAX_STOPS..);
        arena.copy(device, place, stops.len(), |to| to.copy_from_slice(stops))?;
        if params.track_counts != 0 {
            self.write_history(device, arena, open)?;
        }
        self.open[slot] = Some(Slot {
            position: open.output.len() as u32,
            top: u8::try_from(params.top_logprobs).ok(),
            sampled: false,
        });
        Ok(())
    }

    /// What penalties are about: counts of the output so far, and which tokens the prompt has.
    fn write_history(&self, device: &Device, arena: &mut Arena, open: &OpenSlot) -> Result<(), CudaError> {
        let (slot, vocab) = (open.slot.0 as usize, self.vocab);
        let counts = self.counts.slice(slot * vocab..(slot + 1) * vocab);
        if open.output.is_empty() {
            device.fill_bytes(counts, 0)?;
        } else {
            arena.copy(device, counts, vocab, |to| {
                for &token in &open.output {
                    let count = &mut to[token as usize];
                    *count = count.saturating_add(1);
                }
            })?;
        }
        let words = vocab.div_ceil(32);
        let prompts = self.prompts.slice(slot * words..(slot + 1) * words);
        if open.params.repetition_penalty == 1.0 {
            return device.fill_bytes(prompts, 0);
        }
        arena.copy(device, prompts, words, |to| {
            for &token in &open.prompt {
                to[token as usize / 32] |= 1 << (token % 32);
            }
        })
    }

    /// One entry a token, in order of ids, those beyond the vocabulary left out.
    fn merge_bias(&mut self, open: &OpenSlot) {
        let (entries, vocab) = (&mut self.merged, self.vocab);
        entries.clear();
        let given = open.params.logit_bias.iter().filter(|&&(token, _)| (token as usize) < vocab);
        entries.extend(given.map(|&(token, value)| BiasEntry { token, value }));
        // stable: equal tokens are added up in the order in which they were given
        entries.sort_by_key(|entry| entry.token);
        entries.dedup_by(|later, first| {
            let same = later.token == first.token;
            if same {
                first.value += later.value;
            }
            same
        });
    }

    /// Notes that a step samples for a slot; the output position it samples.
    pub fn sample(&mut self, slot: SlotId) -> u32 {
        let Some(slot) = self.open.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return 0 };
        slot.sampled = true;
        slot.position += 1;
        slot.position - 1
    }
}
