use std::sync::atomic::Ordering;

use super::Task;
use crate::{
    attention::{Inputs, Place, Projection, Span, attend, finish, merge, store_keys_values},
    executor::{
        PhaseKind,
        buffers::Worker,
        engine::Engine,
        step::{AttentionUnit, Part, Phase, Piece},
    },
    kv_pool::Element,
    weights::Layer,
};

impl Task<'_> {
    /// A unit of the phases that store keys and values and that attend.
    pub fn attention<E: Element>(&self, phase: Phase, unit: usize, worker: &mut Worker) {
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
        let segments = sequence.segments(piece, d.window);
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
}
