//! A step from tokens to what is sampled and scored.

use std::ops::RangeInclusive;

use super::{
    block::{Counts, Lists},
    buffers::LOGIT_ROWS,
    decoder::Decoder,
    dimensions::Dimensions,
    float32::Float32,
    persistent::Persistent,
    plan::Plan,
    slots::{MAX_BIAS, MAX_STOPS, Slots},
};
use crate::{
    CudaError, Device, View,
    ops::{CopyPages, Gemm, GemmMode, GemmOutput, RmsNorm, RowScale, Sample, Score},
};

/// How a step goes through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// One kernel after another.
    Launches,
    /// All of them in one.
    Persistent,
    /// Two halves of the rows beside each other: one attends while the other's products run.
    Halves,
}

/// Rows of steps that may run as two halves: of each, products are made by clusters in tiles of 32 rows.
const HALVED_ROWS: RangeInclusive<usize> = 33..=64;

/// Steps of a decoder: everything that launches need.
#[derive(Debug)]
pub(super) struct Forward {
    pub decoder: Decoder,
    /// Takes the place of all else that computes layers and logits.
    pub float32: Option<Float32>,
    pub persistent: Option<Persistent>,
    /// As in [`crate::CudaConfig`]; `None` also for models that are slower so.
    pub halves_from: Option<usize>,
    pub mode: GemmMode,
    /// Up to so many rows products do the halves of norms.
    pub fused_rows: usize,
}

impl Forward {
    /// How a step is to go.
    pub fn way(&self, plan: &Plan) -> Way {
        match &self.persistent {
            Some(persistent) if persistent.takes(plan) => Way::Persistent,
            _ if self.is_halved(plan) => Way::Halves,
            _ => Way::Launches,
        }
    }

    /// Before each step that goes this way, replayed or not.
    pub fn begin_step(&mut self, device: &Device, way: Way) -> Result<(), CudaError> {
        match &mut self.persistent {
            Some(persistent) if way == Way::Persistent => persistent.begin_step(device),
            _ => Ok(()),
        }
    }

    fn is_halved(&self, plan: &Plan) -> bool {
        plan.is_plain_decode()
            && HALVED_ROWS.contains(&plan.counts.tokens)
            && self.halves_from.is_some_and(|from| plan.tiles >= from)
    }

    /// Ways that steps of so many rows that decode may go.
    pub fn ways(&self, rows: usize) -> Vec<Way> {
        let mut ways = vec![Way::Launches];
        if self.halves_from.is_some() && HALVED_ROWS.contains(&rows) {
            ways.push(Way::Halves);
        }
        if self.persistent.as_ref().is_some_and(|one| rows <= one.max_rows()) {
            ways.push(Way::Persistent);
        }
        ways
    }

    /// Starts all launches of a step.
    pub fn run(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
        way: Way,
    ) -> Result<(), CudaError> {
        let decoder = &self.decoder;
        if counts.copies > 0 {
            device.copy_pages(CopyPages {
                kv: decoder.kv.view(),
                pairs: lists.copies,
                count: counts.copies,
                layers: decoder.dimensions.layers,
                page_bytes: decoder.page_bytes,
            })?;
        }
        if counts.tokens == 0 {
            return Ok(());
        }
        match (&self.float32, &self.persistent) {
            (Some(float32), _) => float32.layers(device, decoder, slots, lists, counts)?,
            (None, Some(persistent)) if way == Way::Persistent => {
                persistent.run(device, decoder, slots, lists, counts.tokens)?;
            }
            _ => self.launch_layers(device, slots, lists, counts, way)?,
        }
        self.sample(device, slots, lists, counts)?;
        self.score(device, lists, counts)
    }

    fn sample(
        &self,
        device: &Device,
        slots: &Slots,
        lists: Lists<'_>,
        counts: Counts,
    ) -> Result<(), CudaError> {
        let Decoder { dimensions, buffers, .. } = &self.decoder;
        for first in (0..counts.rows).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(counts.rows - first);
            self.logits(device, counts, lists.rows.slice(first..), first, rows)?;
            device.sample(Sample {
                drawn: buffers.drawn.slice(first..),
                last_tokens: slots.last_tokens.view(),
                logits: buffers.logits.view(),
                slots: lists.row_slots.slice(first..),
                positions: lists.row_positions.slice(first..),
                params: slots.params.view(),
                bias: slots.bias.view(),
                stops: slots.stops.view(),
                counts: slots.counts.view(),
                prompts: slots.prompts.view(),
                rows,
                vocab: dimensions.vocab,
                columns: dimensions.logit_columns(),
                max_bias: MAX_BIAS,
                max_stops: MAX_STOPS,
            })?;
        }
        Ok(())
    }

    fn score(&self, device: &Device, lists: Lists<'_>, counts: Counts) -> Result<(), CudaError> {
        let Decoder { dimensions, buffers, .. } = &self.decoder;
        for first in (0..counts.scores).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(counts.scores - first);
            self.logits(device, counts, lists.score_rows.slice(first..), counts.rows + first, rows)?;
            device.score(Score {
                scored: buffers.scored.slice(first..),
                logits: buffers.logits.view(),
                targets: lists.score_targets.slice(first..),
                tops: lists.score_tops.slice(first..),
                rows,
                vocab: dimensions.vocab,
                columns: dimensions.logit_columns(),
            })?;
        }
        Ok(())
    }

    /// Logits of some rows of the residual stream, which begin at `first` of those gathered.
    fn logits(
        &self,
        device: &Device,
        counts: Counts,
        rows: View<'_, u32>,
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        if let Some(float32) = &self.float32 {
            return float32.logits(device, &self.decoder, rows, count);
        }
        let Decoder { dimensions, weights, buffers, .. } = &self.decoder;
        let Dimensions { hidden, eps, .. } = *dimensions;
        let (stream, rows) = match counts.last {
            Some(_) => (buffers.last_hidden.slice(first * hidden..), None),
            None => (buffers.hidden.view(), Some(rows)),
        };
        device.rms_norm(RmsNorm {
            out: buffers.last.view(),
            hidden: stream,
            weight: weights.final_norm.view(),
            rows,
            scales: None,
            count,
            width: hidden,
            eps,
        })?;
        device.gemm(Gemm {
            output: GemmOutput::F32(buffers.logits.view()),
            x: buffers.last.view(),
            w: weights.head().view().into(),
            scale: RowScale::One,
            m: count,
            n: dimensions.logit_columns(),
            k: hidden,
            mode: self.mode,
            half: false,
        })
    }
}
