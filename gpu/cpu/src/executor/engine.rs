//! What the threads of an executor share, and what they do in each phase of a step.

use std::{cell::UnsafeCell, ops::Range, sync::atomic::Ordering};

use half::{bf16, f16};
use models::{Logprobs, sampler};

use super::{
    PhaseKind, Profile,
    buffers::{Buffers, Worker},
    dimensions::{Dimensions, Units},
    slots::Slots,
    step::{AttentionUnit, Part, Phase, Piece, Step},
};
use crate::{
    Acts, Isa, KvDtype, Linear, OutPtr, TILE_ROWS,
    activation::{add, silu_mul},
    attention::{Inputs, Place, Projection, Span, attend, finish, merge, store_keys_values},
    kv_pool::{Element, KvPool},
    memory::Shared,
    norm::norm,
    rope::Rope,
    team::Work,
    weights::{Layer, Weights},
};

/// Weights, memory and the running step.
pub(super) struct Engine {
    pub isa: Isa,
    pub dimensions: Dimensions,
    pub weights: Weights,
    pub rope: Rope,
    pub pool: KvPool,
    pub buffers: Buffers,
    pub workers: Shared<Worker>,
    state: UnsafeCell<State>,
}

/// What changes from step to step: written between steps by the thread that owns the executor, read by all in a step.
pub(super) struct State {
    pub slots: Slots,
    pub step: Step,
    /// Counts steps.
    pub number: u64,
    pub profile: Profile,
}

// SAFETY: the buffers are divided among units (see `run`), a worker's scratch belongs to its thread, and the state is
// written between steps or, its profile, by the one thread that opens a phase.
unsafe impl Sync for Engine {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Engine {}

impl Engine {
    pub fn new(
        (isa, dimensions): (Isa, Dimensions),
        (weights, rope): (Weights, Rope),
        pool: KvPool,
        (buffers, workers): (Buffers, Shared<Worker>),
        slots: Slots,
    ) -> Self {
        let state =
            UnsafeCell::new(State { slots, step: Step::default(), number: 0, profile: Profile::default() });
        Self { isa, dimensions, weights, rope, pool, buffers, workers, state }
    }

    /// # Safety
    /// A step is running, or nobody writes the state.
    pub unsafe fn state(&self) -> &State {
        // SAFETY: the caller's promise.
        unsafe { &*self.state.get() }
    }

    /// # Safety
    /// No step is running and nobody else uses the state.
    #[expect(clippy::mut_from_ref, reason = "the state is a cell")]
    pub unsafe fn state_mut(&self) -> &mut State {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.state.get() }
    }
}

impl Work for Engine {
    fn open(&self, phase: u32) -> u32 {
        // SAFETY: the thread that opens a phase runs alone in this step: all units before are finished.
        let state = unsafe { self.state_mut() };
        let phase = state.step.phases[phase as usize];
        state.profile.begin(phase.kind);
        phase.units as u32
    }

    fn run(&self, phase: u32, unit: u32, worker: usize) {
        // SAFETY: a step is running; this thread alone has this worker's scratch.
        let (state, scratch) = unsafe { (self.state(), &mut self.workers.write(worker..worker + 1)[0]) };
        let task = Task { engine: self, step: &state.step, slots: &state.slots, key: (state.number, phase) };
        task.run(state.step.phases[phase as usize], unit as usize, scratch);
    }
}

/// A unit of the running step. What it may touch: of the buffer that its phase writes, the part of its unit (rows, or
/// the columns of its tiles, or heads); of other buffers everything, to read.
struct Task<'a> {
    engine: &'a Engine,
    step: &'a Step,
    slots: &'a Slots,
    /// Step and phase.
    key: (u64, u32),
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
    fn run(&self, phase: Phase, unit: usize, worker: &mut Worker) {
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

    fn attention<E: Element>(&self, phase: Phase, unit: usize, worker: &mut Worker) {
        let layer = &self.engine.weights.layers[phase.index];
        let inputs = self.inputs(layer);
        if phase.kind == PhaseKind::Store {
            let piece = &self.step.stores[unit];
            for head in 0..inputs.kv_heads {
                self.store::<E>(&inputs, phase.index, head, piece, worker);
            }
        } else {
            self.attend::<E>(&inputs, phase.index, self.step.attention[unit], worker);
        }
    }

    fn inputs<'a>(&'a self, layer: &'a Layer) -> Inputs<'a> {
        let Engine { dimensions: d, buffers, rope, .. } = self.engine;
        let rows = self.step.tokens.len();
        let angles_len = 2 * rope.pairs();
        // SAFETY: earlier phases have written them; this phase writes neither.
        let (projected, angles) =
            unsafe { (buffers.qkv.read(0..rows * d.qkv_width()), buffers.angles.read(0..rows * angles_len)) };
        Inputs {
            rows: projected,
            angles,
            angles_len,
            heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            query: Projection { bias: &layer.q_bias, norm: &layer.q_norm, eps: d.norm_eps },
            key: Projection { bias: &layer.k_bias, norm: &layer.k_norm, eps: d.norm_eps },
            value_bias: &layer.v_bias,
            window: d.window,
        }
    }

    fn place(&self, sequence: usize) -> Place<'_> {
        let sequence = &self.step.sequences[sequence];
        Place {
            pages: &self.step.pages[sequence.pages.clone()],
            row: sequence.row,
            position: sequence.position,
        }
    }

    fn store<E: Element>(
        &self,
        inputs: &Inputs<'_>,
        layer: usize,
        head: usize,
        piece: &Piece,
        worker: &mut Worker,
    ) {
        let Engine { isa, pool, .. } = self.engine;
        let place = self.place(piece.sequence);
        let kv = pool.head::<E>(layer, head);
        // SAFETY: these positions are this unit's, or, in the attention phase, this unit is the only one that uses
        // the position: no page that is written is shared.
        unsafe {
            store_keys_values(
                *isa,
                inputs,
                &kv,
                head,
                &place,
                piece.tokens.clone(),
                &mut worker.attention.head,
            );
        }
    }

    fn attend<E: Element>(
        &self,
        inputs: &Inputs<'_>,
        layer: usize,
        unit: AttentionUnit,
        worker: &mut Worker,
    ) {
        let Engine { isa, dimensions: d, pool, buffers, .. } = self.engine;
        let piece = &self.step.spans[unit.span];
        let sequence = &self.step.sequences[piece.sequence];
        let segments = d.segments(sequence, piece);
        let own = unit.part.map_or(segments.clone(), |part| {
            let segment = segments.start + part.index;
            segment..segment + 1
        });
        if sequence.len == 1 && own.end == segments.end {
            self.store::<E>(inputs, layer, unit.kv_head, piece, worker);
        }
        let kv = pool.head::<E>(layer, unit.kv_head);
        let place = self.place(piece.sequence);
        let span = Span { inputs, kv, kv_head: unit.kv_head, place, tokens: piece.tokens.clone() };
        // SAFETY: the visible keys and values were stored by earlier steps, the phase before or just now; the heads of
        // these rows are this unit's, or, if the span is split, those of whichever unit finishes last.
        unsafe {
            attend(*isa, &span, own, &mut worker.attention);
            match unit.part {
                None => finish(&span, &worker.attention.total, &buffers.attention),
                Some(part) => {
                    if self.merge_parts(part, segments.len(), worker) {
                        finish(&span, &worker.attention.total, &buffers.attention);
                    }
                }
            }
        }
    }

    /// Keeps a segment of a split span; the last of its units merges all and returns true.
    fn merge_parts(&self, part: Part, segments: usize, worker: &mut Worker) -> bool {
        let Engine { isa, dimensions: d, buffers, .. } = self.engine;
        let rows = d.heads / d.kv_heads;
        let first = part.group * d.max_segments;
        let at = first + part.index;
        // SAFETY: each unit writes its own segment.
        unsafe { buffers.partials.write(at..at + 1)[0].copy_from(&worker.attention.total, rows) };
        let counter = &self.step.unmerged[part.group];
        let done = counter.fetch_add(1, Ordering::AcqRel) + 1;
        if (done as usize) < segments {
            return false;
        }
        // The next layer counts anew.
        counter.store(0, Ordering::Relaxed);
        // SAFETY: all segments are written: the counter has seen their units.
        let parts = unsafe { buffers.partials.read(first..first + segments) };
        worker.attention.total.copy_from(&parts[0], rows);
        for next in &parts[1..] {
            // SAFETY: the machine has the instructions.
            unsafe { merge(*isa, &mut worker.attention.total, next, rows) };
        }
        true
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
