//! What one step computes, laid out before it starts so that its units find everything by index.

use std::{ops::Range, sync::atomic::AtomicU32};

use models::{Batch, Export, PLACEHOLDER, PageCopy, Score, SlotId, TokenId};

use super::{dimensions::Dimensions, slots::Slots};
use crate::attention::{SEGMENT, tokens_per_span};

/// The plan of a step. Its buffers are kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub copies: Vec<PageCopy>,
    /// Pages that are complete with this step.
    pub exports: Vec<Export>,
    pub tokens: Vec<TokenId>,
    /// Of each token.
    pub positions: Vec<u32>,
    pub pages: Vec<u32>,
    pub sequences: Vec<Sequence>,
    /// Pieces of sequences of more than one token, whose keys and values are stored before anything attends.
    pub stores: Vec<Piece>,
    pub spans: Vec<Piece>,
    pub attention: Vec<AttentionUnit>,
    /// For each (span, kv head) of a step whose spans are split: segments that are not done.
    pub unmerged: Vec<AtomicU32>,
    /// Rows of which logits are computed, in batch order.
    pub logits: Vec<LogitRow>,
    /// Slots that asked for scores, in batch order.
    pub scored: Vec<SlotId>,
    pub phases: Vec<Phase>,
}

/// One sequence's tokens.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub slot: SlotId,
    /// In [`Step::pages`].
    pub pages: Range<usize>,
    /// Of the first token.
    pub row: usize,
    pub position: usize,
    pub len: usize,
}

impl Sequence {
    /// Segments of keys that a piece of it sees.
    pub fn segments(&self, piece: &Piece, window: Option<usize>) -> Range<usize> {
        let first = self.position + piece.tokens.start + 1;
        let start = window.map_or(0, |window| first.saturating_sub(window));
        start / SEGMENT..(self.position + piece.tokens.end).div_ceil(SEGMENT)
    }
}

/// Some tokens of a sequence.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub sequence: usize,
    pub tokens: Range<usize>,
}

/// A span and a kv head, or one segment of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionUnit {
    pub span: usize,
    pub kv_head: usize,
    pub part: Option<Part>,
}

/// A segment of a split span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Counted from the first segment that the span sees.
    pub index: usize,
    /// In [`Step::unmerged`].
    pub group: usize,
}

/// A row of logits and what is done with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitRow {
    pub row: usize,
    pub slot: SlotId,
    /// Report the log probability of this token.
    pub score: Option<TokenId>,
    pub sample: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase {
    pub kind: PhaseKind,
    /// Layer, or group of logit rows.
    pub index: usize,
    pub units: usize,
}

/// Phases of a step in their order; those up to `Down` once per layer, those after it once per group of logit rows.
/// Phases that prepare rows for a product are left out where each thread prepares them for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PhaseKind {
    /// Pages are copied.
    Copy,
    /// Rows of the embedding are read, angles of positions computed.
    Embed,
    PrepareQkv,
    Qkv,
    /// Keys and values of prompts are stored.
    Store,
    Attention,
    PrepareOutput,
    Output,
    PrepareGateUp,
    GateUp,
    PrepareDown,
    Down,
    PrepareHead,
    Head,
    Sample,
}

impl PhaseKind {
    pub const ALL: [Self; 15] = [
        Self::Copy,
        Self::Embed,
        Self::PrepareQkv,
        Self::Qkv,
        Self::Store,
        Self::Attention,
        Self::PrepareOutput,
        Self::Output,
        Self::PrepareGateUp,
        Self::GateUp,
        Self::PrepareDown,
        Self::Down,
        Self::PrepareHead,
        Self::Head,
        Self::Sample,
    ];
}

impl Step {
    /// Lays out a batch that has been checked.
    pub fn plan(&mut self, batch: &Batch, slots: &Slots, dimensions: &Dimensions) {
        self.copies.clear();
        self.copies.extend_from_slice(&batch.copies);
        self.exports.clear();
        self.exports.extend_from_slice(&batch.exports);
        self.lay_out_sequences(batch, slots);
        self.plan_logits(batch);
        self.plan_attention(dimensions);
        self.plan_phases(dimensions);
    }

    fn lay_out_sequences(&mut self, batch: &Batch, slots: &Slots) {
        self.tokens.clear();
        self.positions.clear();
        self.pages.clear();
        self.sequences.clear();
        for sequence in &batch.sequences {
            let tokens = &batch.tokens[sequence.tokens.start as usize..sequence.tokens.end as usize];
            let pages = &batch.pages[sequence.pages.start as usize..sequence.pages.end as usize];
            self.sequences.push(Sequence {
                slot: sequence.slot,
                pages: self.pages.len()..self.pages.len() + pages.len(),
                row: self.tokens.len(),
                position: sequence.start as usize,
                len: tokens.len(),
            });
            self.pages.extend_from_slice(pages);
            self.positions.extend((sequence.start..).take(tokens.len()));
            let last = slots.last_token(sequence.slot);
            self.tokens.extend(tokens.iter().map(|&token| if token == PLACEHOLDER { last } else { token }));
        }
    }

    fn plan_logits(&mut self, batch: &Batch) {
        self.logits.clear();
        self.scored.clear();
        for (sequence, step) in self.sequences.iter().zip(&batch.sequences) {
            let tokens = &self.tokens[sequence.row..][..sequence.len];
            self.scored.extend(step.score.map(|_| sequence.slot));
            for token in 0..sequence.len {
                let last = token + 1 == sequence.len;
                let score = step.score.and_then(|Score { from, next }| {
                    let following = if last { next } else { Some(tokens[token + 1]) };
                    following.filter(|_| token >= from as usize)
                });
                let sample = last && step.sample;
                if sample || score.is_some() {
                    let row = sequence.row + token;
                    self.logits.push(LogitRow { row, slot: sequence.slot, score, sample });
                }
            }
        }
    }

    fn plan_attention(&mut self, dimensions: &Dimensions) {
        self.stores.clear();
        self.spans.clear();
        self.attention.clear();
        for (index, sequence) in self.sequences.iter().enumerate() {
            let pieces = |len: usize| {
                (0..sequence.len)
                    .step_by(len)
                    .map(move |start| Piece { sequence: index, tokens: start..sequence.len.min(start + len) })
            };
            self.spans.extend(pieces(tokens_per_span(dimensions.heads / dimensions.kv_heads)));
            if sequence.len > 1 {
                self.stores.extend(pieces(dimensions.rows_per_unit));
            }
        }
        let units = self.spans.len() * dimensions.kv_heads;
        let split = units < dimensions.split_below;
        let mut groups = 0;
        for (span, piece) in self.spans.iter().enumerate().rev() {
            let sequence = &self.sequences[piece.sequence];
            let segments = sequence.segments(piece, dimensions.window);
            for kv_head in 0..dimensions.kv_heads {
                if split && sequence.len == 1 && segments.len() > 1 {
                    let part =
                        |index| AttentionUnit { span, kv_head, part: Some(Part { index, group: groups }) };
                    self.attention.extend((0..segments.len()).map(part));
                    if groups == self.unmerged.len() {
                        self.unmerged.push(AtomicU32::new(0));
                    }
                    groups += 1;
                } else {
                    self.attention.push(AttentionUnit { span, kv_head, part: None });
                }
            }
        }
    }

    fn plan_phases(&mut self, dimensions: &Dimensions) {
        let rows = self.tokens.len();
        let row_units = |rows: usize| rows.div_ceil(dimensions.rows_per_unit);
        // Where every thread prepares its own copy there is no phase for it.
        let prepare_units = |rows: usize| if dimensions.prepares_inline(rows) { 0 } else { row_units(rows) };
        self.phases.clear();
        let mut push = |kind, index, units| {
            if units > 0 {
                self.phases.push(Phase { kind, index, units });
            }
        };
        push(PhaseKind::Copy, 0, if self.copies.is_empty() { 0 } else { dimensions.layers });
        push(PhaseKind::Embed, 0, row_units(rows));
        if rows > 0 {
            for layer in 0..dimensions.layers {
                push(PhaseKind::PrepareQkv, layer, prepare_units(rows));
                push(PhaseKind::Qkv, layer, dimensions.qkv.units);
                push(PhaseKind::Store, layer, self.stores.len());
                push(PhaseKind::Attention, layer, self.attention.len());
                push(PhaseKind::PrepareOutput, layer, prepare_units(rows));
                push(PhaseKind::Output, layer, dimensions.output.units);
                push(PhaseKind::PrepareGateUp, layer, prepare_units(rows));
                push(PhaseKind::GateUp, layer, dimensions.gate_up.units);
                push(PhaseKind::PrepareDown, layer, prepare_units(rows));
                push(PhaseKind::Down, layer, dimensions.down.units);
            }
        }
        for (index, group) in self.logits.chunks(dimensions.logit_rows).enumerate() {
            push(PhaseKind::PrepareHead, index, prepare_units(group.len()));
            push(PhaseKind::Head, index, dimensions.head.units);
            push(PhaseKind::Sample, index, group.len());
        }
    }
}
