use crate::DecoderSpec;

/// Names a weight of a decoder, whatever its file calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightId {
    /// `vocab_size × hidden_size`
    Embedding,
    /// `hidden_size`
    FinalNorm,
    /// `vocab_size × hidden_size`
    Head,
    Layer(u32, LayerWeight),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerWeight {
    /// `hidden_size`
    AttentionNorm,
    /// `heads · head_dim × hidden_size`
    Q,
    /// `kv_heads · head_dim × hidden_size`
    K,
    /// `kv_heads · head_dim × hidden_size`
    V,
    QBias,
    KBias,
    VBias,
    /// `head_dim`, the same for every head.
    QNorm,
    /// `head_dim`, the same for every head.
    KNorm,
    /// `hidden_size × heads · head_dim`
    O,
    /// `hidden_size`
    MlpNorm,
    /// `intermediate_size × hidden_size`
    Gate,
    /// `intermediate_size × hidden_size`
    Up,
    /// `hidden_size × intermediate_size`
    Down,
}

impl LayerWeight {
    pub const ALL: [Self; 14] = [
        Self::AttentionNorm,
        Self::Q,
        Self::K,
        Self::V,
        Self::QBias,
        Self::KBias,
        Self::VBias,
        Self::QNorm,
        Self::KNorm,
        Self::O,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    fn is_in(self, spec: &DecoderSpec) -> bool {
        match self {
            Self::QBias | Self::KBias | Self::VBias => spec.qkv_bias,
            Self::QNorm | Self::KNorm => spec.qk_norm,
            _ => true,
        }
    }
}

impl WeightId {
    /// Every stored weight of a decoder, in the order of the forward pass; no head where it is tied.
    pub fn all(spec: &DecoderSpec) -> impl Iterator<Item = Self> {
        let layer = |layer| {
            let weights = LayerWeight::ALL.into_iter().filter(|weight| weight.is_in(spec));
            weights.map(move |weight| Self::Layer(layer, weight))
        };
        let head = (!spec.tied_embeddings).then_some(Self::Head);
        let ends = std::iter::once(Self::FinalNorm).chain(head);
        std::iter::once(Self::Embedding).chain((0..spec.layers).flat_map(layer)).chain(ends)
    }

    /// Rows and columns; a vector has one row.
    pub fn shape(self, spec: &DecoderSpec) -> (usize, usize) {
        let [vocab, hidden, queries, kv, head, intermediate] = [
            spec.vocab_size,
            spec.hidden_size,
            spec.query_width(),
            spec.kv_width(),
            spec.head_dim,
            spec.intermediate_size,
        ]
        .map(|n| n as usize);
        match self {
            Self::Embedding | Self::Head => (vocab, hidden),
            Self::FinalNorm => (1, hidden),
            Self::Layer(_, weight) => match weight {
                LayerWeight::AttentionNorm | LayerWeight::MlpNorm => (1, hidden),
                LayerWeight::Q => (queries, hidden),
                LayerWeight::K | LayerWeight::V => (kv, hidden),
                LayerWeight::QBias => (1, queries),
                LayerWeight::KBias | LayerWeight::VBias => (1, kv),
                LayerWeight::QNorm | LayerWeight::KNorm => (1, head),
                LayerWeight::O => (hidden, queries),
                LayerWeight::Gate | LayerWeight::Up => (intermediate, hidden),
                LayerWeight::Down => (hidden, intermediate),
            },
        }
    }

    /// Norms and biases.
    pub fn is_vector(self) -> bool {
        use LayerWeight::{AttentionNorm, KBias, KNorm, MlpNorm, QBias, QNorm, VBias};
        match self {
            Self::FinalNorm => true,
            Self::Embedding | Self::Head => false,
            Self::Layer(_, w) => matches!(w, AttentionNorm | MlpNorm | QBias | KBias | VBias | QNorm | KNorm),
        }
    }

    /// How many heads the output features make, if RoPE turns them.
    pub(super) fn rotated_heads(self, spec: &DecoderSpec) -> Option<usize> {
        match self {
            Self::Layer(_, LayerWeight::Q | LayerWeight::QBias) => Some(spec.heads as usize),
            Self::Layer(_, LayerWeight::K | LayerWeight::KBias) => Some(spec.kv_heads as usize),
            _ => None,
        }
    }
}
