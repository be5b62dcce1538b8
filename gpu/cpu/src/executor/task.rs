//! What a thread does in each phase of a step.

use std::ops::Range;

use half::{bf16, f16};
use models::{Logprobs, sampler};

use super::{
    PhaseKind,
    buffers::Worker,
    dimensions::Units,
    engine::Engine,
    slots::Slots,
    step::{Phase, Step},
};
use crate::{
    Acts, KvDtype, Linear, OutPtr, TILE_ROWS,
    activation::{add, silu_mul},
    norm::norm,
};

mod attention;

/// A unit of the running step. What it may touch: of the buffer that its phase writes, the part of its unit (rows, or
/// the columns of its tiles, or heads); of other buffers everything, to read.
pub(super) struct Task<'a> {
    pub engine: &'a Engine,
    pub step: &'a Step,
    pub slots: &'a Slots,
    /// Step and phase.
    pub key: (u64, u32),
}

/// Which activations a product takes.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Normalised residual stream of all rows.
    Hidden(&'a [f32]),
    /// Attention.
    Attention,
    /// `silu(gate) * up`.
    Gated,
    /// Normalised residual stream of a group of logit rows.
    Logits(usize),
}

impl Task<'_> {
    pub fn run(&self, phase: Phase, unit: usize, worker: &mut Worker) {
        let d = &self.engine.dimensions;
        let weights = &self.engine.weights;
        let buffers = &self.engine.buffers;
        let layer = || &weights.layers[phase.index];
        match phase.kind {
            PhaseKind::Copy => self.copy(unit),
            PhaseKind::Embed => self.embed(unit),
            PhaseKind::PrepareQkv => self.prepare(Source::Hidden(&layer().attention_norm), unit, worker),
            PhaseKind::Qkv => {
                let source = Source::Hidden(&layer().attention_norm);
                self.product(&layer().qkv, source, d.qkv.range(unit), buffers.qkv_out, worker);
            }
            PhaseKind::Store | PhaseKind::Attention => match self.engine.pool.shape().dtype {
                KvDtype::F16 => self.attention::<f16>(phase, unit, worker),
                KvDtype::Bf16 => self.attention::<bf16>(phase, unit, worker),
                KvDtype::F32 => self.attention::<f32>(phase, unit, worker),
            },
            PhaseKind::PrepareOutput => self.prepare(Source::Attention, unit, worker),
            PhaseKind::Output => self.add_product(&layer().output, Source::Attention, d.output, unit, worker),
            PhaseKind::PrepareGateUp => self.prepare(Source::Hidden(&layer().mlp_norm), unit, worker),
            PhaseKind::GateUp => {
                let source = Source::Hidden(&layer().mlp_norm);
                self.product(&layer().gate_up, source, d.gate_up.range(unit), buffers.gate_up_out, worker);
            }
            PhaseKind::PrepareDown => self.prepare(Source::Gated, unit, worker),
            PhaseKind::Down => self.add_product(&layer().down, Source::Gated, d.down, unit, worker),
            PhaseKind::PrepareHead => self.prepare(Source::Logits(phase.index), unit, worker),
            PhaseKind::Head => {
                let source = Source::Logits(phase.index);
                self.product(weights.head(), source, d.head.range(unit), buffers.logits_out, worker);
            }
            PhaseKind::Sample => self.sample(phase.index * d.logit_rows + unit, worker),
        }
    }

    /// Copies one layer of all pages that are to be copied, in their order.
    fn copy(&self, layer: usize) {
        for copy in &self.step.copies {
            // SAFETY: this unit alone touches the layer in this phase; pages were checked.
            unsafe { self.engine.pool.copy_layer(layer, copy.from as usize, copy.to as usize) };
        }
    }

    fn embed(&self, unit: usize) {
        let Engine { dimensions: d, weights, rope, buffers, .. } = self.engine;
        for row in self.rows_of(unit, self.step.tokens.len()) {
            // SAFETY: the rows are this unit's.
            let (hidden, angles) = unsafe {
                let width = 2 * rope.pairs();
                (
                    buffers.hidden.write(row * d.hidden..(row + 1) * d.hidden),
                    buffers.angles.write(row * width..(row + 1) * width),
                )
            };
            weights.embedding.row_to_f32(self.step.tokens[row] as usize, hidden);
            rope.angles(self.step.positions[row], angles);
        }
    }

    /// Rows of a unit that prepares some of `rows` rows.
    fn rows_of(&self, unit: usize, rows: usize) -> Range<usize> {
        let per_unit = self.engine.dimensions.rows_per_unit;
        unit * per_unit..rows.min((unit + 1) * per_unit)
    }

    /// Rows of activations that a source has.
    fn rows(&self, source: Source<'_>) -> usize {
        match source {
            Source::Logits(group) => self.logit_group(group).len(),
            _ => self.step.tokens.len(),
        }
    }

    fn logit_group(&self, group: usize) -> Range<usize> {
        let rows = self.engine.dimensions.logit_rows;
        group * rows..self.step.logits.len().min((group + 1) * rows)
    }

    /// Prepares a unit's rows for all threads.
    fn prepare(&self, source: Source<'_>, unit: usize, worker: &mut Worker) {
        let buffers = &self.engine.buffers;
        let acts = match source {
            Source::Hidden(_) | Source::Logits(_) => &buffers.hidden_acts,
            Source::Attention => &buffers.query_acts,
            Source::Gated => &buffers.intermediate_acts,
        };
        self.prepare_rows(source, self.rows_of(unit, self.rows(source)), acts, &mut worker.row);
    }

    /// Prepares rows into `acts`, which no other thread uses for these rows.
    fn prepare_rows(&self, source: Source<'_>, rows: Range<usize>, acts: &Acts, scratch: &mut [f32]) {
        let Engine { isa, dimensions: d, weights, buffers, .. } = self.engine;
        for row in rows {
            // SAFETY: earlier phases have written what is read; instructions are there; the rows of `acts` are ours.
            unsafe {
                let hidden = |row: usize| buffers.hidden.read(row * d.hidden..(row + 1) * d.hidden);
                let values = match source {
                    Source::Hidden(weight) => {
                        norm(*isa, hidden(row), weight, d.norm_eps, &mut scratch[..d.hidden]);
                        &scratch[..d.hidden]
                    }
                    Source::Logits(group) => {
                        let row = self.step.logits[self.logit_group(group)][row].row;
                        norm(*isa, hidden(row), &weights.final_norm, d.norm_eps, &mut scratch[..d.hidden]);
                        &scratch[..d.hidden]
                    }
                    Source::Attention => {
                        buffers.attention.read(row * d.query_width()..(row + 1) * d.query_width())
                    }
                    Source::Gated => {
                        let n = d.intermediate;
                        let (gate, up) = buffers.gate_up.read(row * 2 * n..(row + 1) * 2 * n).split_at(n);
                        silu_mul(*isa, gate, up, &mut scratch[..n]);
                        &scratch[..n]
                    }
                };
                acts.prepare(values, row..row + 1);
            }
        }
    }

    /// Computes the tiles `tiles` of a product.
    fn product(
        &self,
        linear: &Linear,
        source: Source<'_>,
        tiles: Range<usize>,
        out: OutPtr,
        worker: &mut Worker,
    ) {
        let rows = self.rows(source);
        let buffers = &self.engine.buffers;
        let inline = self.engine.dimensions.prepares_inline(rows);
        if inline && worker.prepared != self.key {
            let Worker { hidden_acts, query_acts, intermediate_acts, row, .. } = worker;
            let acts = match source {
                Source::Hidden(_) | Source::Logits(_) => hidden_acts,
                Source::Attention => query_acts,
                Source::Gated => intermediate_acts,
            };
            self.prepare_rows(source, 0..rows, acts, row);
            worker.prepared = self.key;
        }
        let acts = match (source, inline) {
            (Source::Hidden(_) | Source::Logits(_), true) => &worker.hidden_acts,
            (Source::Attention, true) => &worker.query_acts,
            (Source::Gated, true) => &worker.intermediate_acts,
            (Source::Hidden(_) | Source::Logits(_), false) => &buffers.hidden_acts,
            (Source::Attention, false) => &buffers.query_acts,
            (Source::Gated, false) => &buffers.intermediate_acts,
        };
        // SAFETY: the buffers live as long as the engine, the tiles are this unit's, and the activations are those of
        // this thread or were prepared in the phase before.
        unsafe { linear.apply(acts, rows, out, tiles) };
    }

    /// Computes a unit of a product of all rows and adds it to the residual stream.
    fn add_product(
        &self,
        linear: &Linear,
        source: Source<'_>,
        units: Units,
        unit: usize,
        worker: &mut Worker,
    ) {
        let Engine { isa, dimensions: d, buffers, .. } = self.engine;
        let tiles = units.range(unit);
        self.product(linear, source, tiles.clone(), buffers.projected_out, worker);
        let rows = self.step.tokens.len();
        let (first, end) = (tiles.start * TILE_ROWS, d.hidden.min(tiles.end * TILE_ROWS));
        // SAFETY: these columns of all rows are this unit's, in both buffers.
        unsafe {
            let (hidden, projected) = (buffers.hidden.at(first), buffers.projected.at(first));
            add(*isa, hidden, projected, rows, end - first, d.hidden);
        }
    }

    /// Scores and samples a row of logits.
    fn sample(&self, index: usize, worker: &mut Worker) {
        let Engine { dimensions: d, buffers, .. } = self.engine;
        let row = self.step.logits[index];
        let Some(slot) = self.slots.get(row.slot) else { return };
        let at = index % d.logit_rows * d.vocab;
        // SAFETY: the row of logits and its result are this unit's.
        let (logits, result) = unsafe {
            (buffers.logits.write(at..at + d.vocab), &mut buffers.results.write(index..index + 1)[0])
        };
        let alternatives = match slot.params.logprobs {
            Logprobs::Off => 0,
            Logprobs::Top(n) => n.into(),
        };
        result.scored = row.score.map(|token| {
            sampler::score(logits, token, alternatives, &mut worker.sampling, &mut result.scored_top)
        });
        result.draw = row.sample.then(|| {
            let top = &mut result.top;
            sampler::sample(logits, &slot.params, &slot.history, slot.choice, &mut worker.sampling, top)
        });
    }
}
