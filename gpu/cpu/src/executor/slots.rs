use models::{OpenSlot, SamplingParams, SlotId, SlotState, TokenId, sampler::History};

/// State of all open sequences.
#[derive(Debug)]
pub(super) struct Slots(Box<[Option<Slot>]>);

/// An open sequence.
#[derive(Debug)]
pub(super) struct Slot {
    pub params: SamplingParams,
    pub choice: u32,
    pub history: History,
    /// What the last step sampled.
    pub last: Option<TokenId>,
}

impl Slots {
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    pub fn get(&self, slot: SlotId) -> Option<&Slot> {
        self.0.get(slot.0 as usize)?.as_ref()
    }

    pub fn state(&self, slot: SlotId) -> SlotState {
        match self.get(slot) {
            None => SlotState::Free,
            Some(slot) if slot.last.is_some() => SlotState::Sampled,
            Some(_) => SlotState::Open,
        }
    }

    pub fn get_mut(&mut self, slot: SlotId) -> Option<&mut Slot> {
        self.0.get_mut(slot.0 as usize)?.as_mut()
    }

    pub fn close(&mut self, slot: SlotId) {
        if let Some(place) = self.0.get_mut(slot.0 as usize) {
            *place = None;
        }
    }

    /// `room`: tokens that the longest sequence of this vocabulary can hold, so that its history need not grow.
    pub fn open(&mut self, open: &OpenSlot, room: usize) {
        let room = room.saturating_sub(open.output.len());
        if let Some(place) = self.0.get_mut(open.slot.0 as usize) {
            *place = Some(Slot {
                history: History::new(&open.params, &open.prompt, &open.output, room),
                params: open.params.clone(),
                choice: open.choice,
                last: None,
            });
        }
    }

    /// The token that the last step sampled for a slot that has sampled one.
    pub fn last_token(&self, slot: SlotId) -> TokenId {
        self.get(slot).and_then(|slot| slot.last).unwrap_or(0)
    }
}
