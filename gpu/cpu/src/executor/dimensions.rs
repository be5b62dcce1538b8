use models::DecoderSpec;

use crate::{Linear, attention::SEGMENT, weights::Weights};

/// Rows of activations that a unit prepares: those that lie interleaved, so that threads do not share cache lines.
const ROWS_PER_UNIT: usize = 8;

/// Up to so many rows, each thread prepares its own copy of the activations of a product: less work than to wait for
/// one more phase.
const INLINE_ROWS: usize = 4;

/// Rows of logits that are held at once.
const LOGIT_ROWS: usize = 64;

/// Units of a product for each thread: more balance better beside busy cores, fewer cost less.
const UNITS_PER_THREAD: usize = 4;

/// Tiles of a unit at most.
const MAX_TILES_PER_UNIT: usize = 32;

/// Sizes that all parts of an executor share.
#[derive(Debug, Clone)]
pub(super) struct Dimensions {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub norm_eps: f32,
    pub window: Option<usize>,
    /// Rows of a unit that prepares activations or stores keys and values.
    pub rows_per_unit: usize,
    /// Rows of logits that are held at once.
    pub logit_rows: usize,
    /// Below so many attention units, those of single tokens are split by segments.
    pub split_below: usize,
    /// Segments of the longest sequence.
    pub max_segments: usize,
    pub qkv: Units,
    pub output: Units,
    pub gate_up: Units,
    pub down: Units,
    pub head: Units,
}

/// How a product is cut into units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units {
    pub tiles: usize,
    pub tiles_per_unit: usize,
    pub units: usize,
}

impl Units {
    fn new(linear: &Linear, threads: usize) -> Self {
        let tiles = linear.tiles();
        let tiles_per_unit = tiles.div_ceil(UNITS_PER_THREAD * threads).clamp(1, MAX_TILES_PER_UNIT);
        Self { tiles, tiles_per_unit, units: tiles.div_ceil(tiles_per_unit) }
    }

    /// Tiles of a unit.
    pub fn range(&self, unit: usize) -> std::ops::Range<usize> {
        let start = unit * self.tiles_per_unit;
        start..self.tiles.min(start + self.tiles_per_unit)
    }
}

impl Dimensions {
    pub fn new(
        spec: &DecoderSpec,
        weights: &Weights,
        threads: usize,
        context_length: usize,
        max_batch_tokens: usize,
    ) -> Self {
        // All layers have one shape.
        let layer = &weights.layers[0];
        Self {
            layers: spec.layers as usize,
            hidden: spec.hidden_size as usize,
            heads: spec.heads as usize,
            kv_heads: spec.kv_heads as usize,
            head_dim: spec.head_dim as usize,
            intermediate: spec.intermediate_size as usize,
            vocab: spec.vocab_size as usize,
            norm_eps: spec.norm_eps,
            window: spec.sliding_window.map(|window| window as usize),
            rows_per_unit: ROWS_PER_UNIT,
            logit_rows: LOGIT_ROWS.min(max_batch_tokens),
            split_below: if threads > 1 { 2 * threads } else { 0 },
            max_segments: context_length.div_ceil(SEGMENT),
            qkv: Units::new(&layer.qkv, threads),
            output: Units::new(&layer.output, threads),
            gate_up: Units::new(&layer.gate_up, threads),
            down: Units::new(&layer.down, threads),
            head: Units::new(weights.head(), threads),
        }
    }

    /// Elements of a token's queries.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a token's queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Whether each thread prepares `rows` rows for itself.
    pub fn prepares_inline(&self, rows: usize) -> bool {
        rows <= INLINE_ROWS
    }

    /// Rows that a thread may have to prepare for itself.
    pub fn inline_rows(&self) -> usize {
        INLINE_ROWS
    }
}
