use models::TokenLogprob;
use models::sampler::{Draw, Scratch as Sampling};

use super::dimensions::Dimensions;
use crate::{
    Acts, ActsFormat, Isa, OutPtr,
    attention::{self, Rows},
    memory::Shared,
    simd::LANES,
};

/// What passes from phase to phase.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Residual stream, a row per token.
    pub hidden: Shared<f32>,
    pub angles: Shared<f32>,
    pub qkv: Shared<f32>,
    pub attention: Shared<f32>,
    /// Output and down projections before they are added to the residual stream.
    pub projected: Shared<f32>,
    pub gate_up: Shared<f32>,
    pub logits: Shared<f32>,
    /// Prepared activations of products over the hidden size, the query width and the intermediate size.
    pub hidden_acts: Acts,
    pub query_acts: Acts,
    pub intermediate_acts: Acts,
    /// Segments of split spans.
    pub partials: Shared<Rows>,
    /// Of each row of logits.
    pub results: Shared<RowResult>,
    pub qkv_out: OutPtr,
    pub projected_out: OutPtr,
    pub gate_up_out: OutPtr,
    pub logits_out: OutPtr,
}

/// What came of a row of logits.
#[derive(Debug, Default)]
pub(super) struct RowResult {
    pub draw: Option<Draw>,
    pub top: Vec<TokenLogprob>,
    pub scored: Option<f32>,
    pub scored_top: Vec<TokenLogprob>,
}

/// What one thread needs.
#[derive(Debug)]
pub(super) struct Worker {
    pub hidden_acts: Acts,
    pub query_acts: Acts,
    pub intermediate_acts: Acts,
    /// Step and phase for which its activations are prepared.
    pub prepared: (u64, u32),
    /// A row on its way to being prepared.
    pub row: Vec<f32>,
    pub attention: attention::Scratch,
    pub sampling: Sampling,
}

impl Buffers {
    pub fn new(
        d: &Dimensions,
        rows: usize,
        pairs: usize,
        [hidden, query, intermediate]: [ActsFormat; 3],
        isa: Isa,
    ) -> Self {
        let stride = d.head_dim.next_multiple_of(LANES);
        let qkv = Shared::zeroed(rows * d.qkv_width());
        let projected = Shared::zeroed(rows * d.hidden);
        let gate_up = Shared::zeroed(rows * 2 * d.intermediate);
        let logits = Shared::zeroed(d.logit_rows * d.vocab);
        let out = |buffer: &Shared<f32>, width: usize| {
            // SAFETY: nobody else knows the buffer yet; the elements are cells.
            OutPtr::new(unsafe { buffer.write(0..buffer.len()) }, width)
        };
        Self {
            hidden: Shared::zeroed(rows * d.hidden),
            angles: Shared::zeroed(rows * 2 * pairs),
            attention: Shared::zeroed(rows * d.query_width()),
            qkv_out: out(&qkv, d.qkv_width()),
            projected_out: out(&projected, d.hidden),
            gate_up_out: out(&gate_up, 2 * d.intermediate),
            logits_out: out(&logits, d.vocab),
            qkv,
            projected,
            gate_up,
            logits,
            hidden_acts: Acts::new(rows, d.hidden, hidden, isa),
            query_acts: Acts::new(rows, d.query_width(), query, isa),
            intermediate_acts: Acts::new(rows, d.intermediate, intermediate, isa),
            partials: Shared::from_fn(d.split_below * d.max_segments, |_| {
                Rows::new(d.heads / d.kv_heads, stride)
            }),
            results: Shared::from_fn(rows, |_| RowResult::default()),
        }
    }

    pub fn bytes(&self, d: &Dimensions) -> u64 {
        let floats = [
            &self.hidden,
            &self.angles,
            &self.qkv,
            &self.attention,
            &self.projected,
            &self.gate_up,
            &self.logits,
        ];
        let acts = [&self.hidden_acts, &self.query_acts, &self.intermediate_acts];
        let partials = (d.split_below * d.max_segments) as u64
            * Rows::bytes(d.heads / d.kv_heads, d.head_dim.next_multiple_of(LANES));
        floats.iter().map(|buffer| buffer.bytes()).sum::<u64>()
            + acts.iter().map(|acts| acts.bytes() as u64).sum::<u64>()
            + partials
    }
}

impl Worker {
    pub fn new(d: &Dimensions, [hidden, query, intermediate]: [ActsFormat; 3], isa: Isa) -> Self {
        let rows = d.inline_rows();
        Self {
            hidden_acts: Acts::new(rows, d.hidden, hidden, isa),
            query_acts: Acts::new(rows, d.query_width(), query, isa),
            intermediate_acts: Acts::new(rows, d.intermediate, intermediate, isa),
            prepared: (0, 0),
            row: vec![0.0; d.hidden.max(d.intermediate)],
            attention: attention::Scratch::new(d.heads, d.kv_heads, d.head_dim),
            sampling: Sampling::for_vocab(d.vocab),
        }
    }

    pub fn bytes(&self, d: &Dimensions) -> u64 {
        let acts = [&self.hidden_acts, &self.query_acts, &self.intermediate_acts];
        acts.iter().map(|acts| acts.bytes() as u64).sum::<u64>()
            + size_of_val(&*self.row) as u64
            + attention::Scratch::bytes(d.heads, d.kv_heads, d.head_dim)
            + Sampling::bytes_for_vocab(d.vocab)
    }
}
