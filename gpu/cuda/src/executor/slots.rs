use models::{OpenSlot, SamplingBounds, SlotId, SlotState};

use super::dimensions::Dimensions;
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
    /// Logits of a row.
    width: usize,
    /// [slots]
    pub params: Buffer<SampleParams>,
    /// [slots, MAX_BIAS]
    pub bias: Buffer<BiasEntry>,
    /// [slots, MAX_STOPS]
    pub stops: Buffer<u32>,
    /// [slots, width]
    pub counts: Buffer<u16>,
    /// [slots, width / 32 rounded up]
    pub prompts: Buffer<u32>,
    /// [slots]
    pub last_tokens: Buffer<u32>,
}

impl Slots {
    pub fn new(device: &Device, slots: usize, dimensions: &Dimensions) -> Result<Self, CudaError> {
        let (vocab, width) = (dimensions.vocab, dimensions.logits());
        Ok(Self {
            open: vec![None; slots],
            vocab,
            width,
            params: device.allocate(slots)?,
            bias: device.allocate(slots * MAX_BIAS)?,
            stops: device.allocate(slots * MAX_STOPS)?,
            counts: device.allocate(slots * width)?,
            prompts: device.allocate(slots * width.div_ceil(32))?,
            last_tokens: device.allocate(slots)?,
        })
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

    /// Begins a sequence; its state reaches the device in stream order.
    pub fn open(&mut self, device: &Device, open: &OpenSlot) -> Result<(), CudaError> {
        let (slot, vocab, width) = (open.slot.0 as usize, self.vocab, self.width);
        let bias = merged_bias(open, vocab);
        let stops: Vec<u32> =
            open.params.masked_stops().iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let mut params = SampleParams::new(&open.params, open.choice, bias.len() as u32, stops.len() as u32);
        params.top_logprobs = params.top_logprobs.min(vocab as i32);
        device.write_async(self.params.slice(slot..=slot), &[params])?;
        device.write_async(self.bias.slice(slot * MAX_BIAS..), &bias)?;
        device.write_async(self.stops.slice(slot * MAX_STOPS..), &stops)?;
        if params.track_counts != 0 {
            let mut counts = vec![0u16; width];
            for &token in &open.output {
                let count = &mut counts[token as usize];
                *count = count.saturating_add(1);
            }
            device.write_async(self.counts.slice(slot * width..), &counts)?;
            let mut prompt = vec![0u32; width.div_ceil(32)];
            if open.params.repetition_penalty != 1.0 {
                for &token in &open.prompt {
                    prompt[token as usize / 32] |= 1 << (token % 32);
                }
            }
            device.write_async(self.prompts.slice(slot * prompt.len()..), &prompt)?;
        }
        self.open[slot] = Some(Slot {
            position: open.output.len() as u32,
            top: u8::try_from(params.top_logprobs).ok(),
            sampled: false,
        });
        Ok(())
    }

    /// Notes that a step samples for a slot; the output position it samples.
    pub fn sample(&mut self, slot: SlotId) -> u32 {
        let Some(slot) = self.open.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return 0 };
        slot.sampled = true;
        slot.position += 1;
        slot.position - 1
    }
}

/// One entry a token, in order of ids, those beyond the vocabulary left out.
fn merged_bias(open: &OpenSlot, vocab: usize) -> Vec<BiasEntry> {
    let mut entries: Vec<BiasEntry> = Vec::new();
    let mut given: Vec<(u32, f32)> =
        open.params.logit_bias.iter().copied().filter(|&(token, _)| (token as usize) < vocab).collect();
    given.sort_by_key(|&(token, _)| token);
    for (token, value) in given {
        match entries.last_mut() {
            Some(last) if last.token == token => last.value += value,
            _ => entries.push(BiasEntry { token, value }),
        }
    }
    entries
}
