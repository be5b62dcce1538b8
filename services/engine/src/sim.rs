//! The simulated executor: the contract of a device, a timing model instead of arithmetic.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use models::{
    Batch, Executor, ExecutorError, ExecutorSpec, Export, Outputs, PageSink, Sampled, Scored, SlotId, Ticket,
    TokenLogprob,
};

/// Ids below this are left out of what is sampled: special tokens and lone bytes live there.
const FIRST_ID: u32 = 1000;

/// How long a step takes.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Any step.
    pub step: Duration,
    /// Each prompt token, on top.
    pub prefill_token: Duration,
    /// A page read or written.
    pub page: Duration,
}

/// Samples tokens that depend on seed, choice and output position only, at a set pace.
pub struct SimExecutor {
    spec: ExecutorSpec,
    timing: Timing,
    slots: Vec<Option<Slot>>,
    pending: Option<(Outputs, Instant)>,
    /// When the step before was due: a steady stream of steps keeps its pace whatever happens between them.
    last_due: Instant,
    sink: Option<Arc<dyn PageSink>>,
    /// Of the step in flight.
    exports: Vec<Export>,
}

struct Slot {
    seed: u64,
    choice: u32,
    position: u32,
    logprobs: bool,
}

impl SimExecutor {
    pub fn new(spec: ExecutorSpec, timing: Timing) -> Self {
        let slots = (0..spec.slots).map(|_| None).collect();
        Self { spec, timing, slots, pending: None, last_due: Instant::now(), sink: None, exports: Vec::new() }
    }

    fn slot(&mut self, id: SlotId) -> Result<&mut Slot, ExecutorError> {
        let slot = self.slots.get_mut(id.0 as usize).and_then(Option::as_mut);
        slot.ok_or_else(|| ExecutorError::Batch(format!("slot {} is not open", id.0)))
    }

    fn due(&self, batch: &Batch, now: Instant) -> Instant {
        let prompt_tokens = batch.tokens.len().saturating_sub(batch.sequences.len());
        let takes =
            self.timing.step + self.timing.prefill_token * u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        let begins = if now.duration_since(self.last_due) < self.timing.step { self.last_due } else { now };
        begins + takes
    }
}

impl Executor for SimExecutor {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        for slot in &batch.closes {
            self.slot(*slot)?;
            self.slots[slot.0 as usize] = None;
        }
        for open in &batch.opens {
            let place = self.slots.get_mut(open.slot.0 as usize);
            let place = place.ok_or_else(|| ExecutorError::Batch(format!("no slot {}", open.slot.0)))?;
            *place = Some(Slot {
                seed: open.params.seed,
                choice: open.choice,
                position: u32::try_from(open.output.len()).unwrap_or(u32::MAX),
                logprobs: open.params.logprobs != models::Logprobs::Off,
            });
        }
        let vocab = self.spec.vocab_size;
        let mut outputs = Outputs::default();
        for sequence in &batch.sequences {
            if let Some(score) = sequence.score {
                let inputs = sequence.tokens.end - sequence.tokens.start;
                let known = inputs - score.from - u32::from(score.next.is_none());
                let tokens = vec![(-1.0, Vec::new()); known as usize];
                outputs.scored.push(Scored { slot: sequence.slot, tokens });
            }
            if sequence.sample {
                let slot = self.slot(sequence.slot)?;
                let token = token_at(slot.seed, slot.choice, slot.position, vocab);
                slot.position += 1;
                let logprob = slot.logprobs.then_some(-1.0);
                let top = logprob.map(|logprob| TokenLogprob { token, logprob }).into_iter().collect();
                outputs.sampled.push(Sampled { slot: sequence.slot, token, finite: true, logprob, top });
            }
        }
        let now = Instant::now();
        let due = self.due(batch, now);
        self.exports.clone_from(&batch.exports);
        outputs.elapsed = due.saturating_duration_since(now);
        self.last_due = due;
        self.pending = Some((outputs, due));
        Ok(Ticket(batch.step))
    }

    fn collect(&mut self, _ticket: Ticket) -> Result<Outputs, ExecutorError> {
        let (outputs, due) =
            self.pending.take().ok_or_else(|| ExecutorError::Batch("no step is in flight".to_owned()))?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Some(sink) = &self.sink {
            let bytes = vec![0; self.spec.kv.layer_bytes as usize];
            for layer in 0..self.spec.kv.layers {
                self.exports.iter().for_each(|export| sink.layer(export, layer, &bytes));
            }
        }
        Ok(outputs)
    }

    fn read_page(&mut self, _page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        std::thread::sleep(self.timing.page);
        to.fill(0);
        Ok(())
    }

    fn write_page(&mut self, _page: u32, _from: &[u8]) -> Result<(), ExecutorError> {
        std::thread::sleep(self.timing.page);
        Ok(())
    }

    fn export_to(&mut self, sink: Arc<dyn PageSink>) {
        self.sink = Some(sink);
    }
}

/// The token at an output position (SplitMix64 of its coordinates).
fn token_at(seed: u64, choice: u32, position: u32, vocab: u32) -> u32 {
    let mut x = seed ^ (u64::from(choice) << 40) ^ u64::from(position).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let first = if vocab > 2 * FIRST_ID { FIRST_ID } else { 0 };
    first + (x % u64::from(vocab - first)) as u32
}
