use models::DecoderSpec;

use crate::CudaError;

/// Sizes of a decoder as the kernels see it.
#[derive(Debug, Clone)]
pub(super) struct Dimensions {
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a head in the model.
    pub model_head_dim: usize,
    /// Elements of a head in the kernels, padded with zeros.
    pub head_dim: usize,
    pub intermediate: usize,
    pub eps: f32,
    pub window: Option<u32>,
}

/// Most query heads a key head may have.
const MAX_GROUP: usize = 16;

impl Dimensions {
    pub fn new(spec: &DecoderSpec) -> Result<Self, CudaError> {
        let dimensions = Self {
            vocab: spec.vocab_size as usize,
            hidden: spec.hidden_size as usize,
            layers: spec.layers as usize,
            heads: spec.heads as usize,
            kv_heads: spec.kv_heads as usize,
            model_head_dim: spec.head_dim as usize,
            head_dim: if spec.head_dim <= 64 { 64 } else { 128 },
            intermediate: spec.intermediate_size as usize,
            eps: spec.norm_eps,
            window: spec.sliding_window,
        };
        let unsupported = |what: String| Err(CudaError::Unsupported(what));
        if spec.head_dim > 128 || spec.head_dim % 2 == 1 {
            return unsupported(format!("heads of {} elements", spec.head_dim));
        }
        if !spec.heads.is_multiple_of(spec.kv_heads) || dimensions.heads / dimensions.kv_heads > MAX_GROUP {
            return unsupported(format!("{} heads over {} key heads", spec.heads, spec.kv_heads));
        }
        for (name, size) in [("hidden size", spec.hidden_size), ("intermediate size", spec.intermediate_size)]
        {
            if !size.is_multiple_of(8) {
                return unsupported(format!("a {name} of {size}, no multiple of 8"));
            }
        }
        Ok(dimensions)
    }

    /// Rows of the head, as products take them, and columns of logits: those of the vocabulary, then zeros.
    pub fn logit_columns(&self) -> usize {
        self.vocab.next_multiple_of(8)
    }

    /// Whether heads are wider in the kernels than in the model.
    pub fn pads_heads(&self) -> bool {
        self.model_head_dim != self.head_dim
    }

    /// Heads of a row of the QKV product.
    pub fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    pub fn qkv_width(&self) -> usize {
        self.all_heads() * self.head_dim
    }

    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Most columns of a product of a layer.
    pub fn widest(&self) -> usize {
        self.qkv_width().max(2 * self.intermediate).max(self.hidden)
    }

    /// Elements of one page of one layer.
    pub fn page_elements(&self, page_size: usize) -> usize {
        2 * self.kv_heads * page_size * self.head_dim
    }

    /// Of attention scores.
    pub fn scale(&self) -> f32 {
        1.0 / (self.model_head_dim as f32).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use models::synthetic;

    use super::*;

    #[test]
    fn vocabularies_of_any_size_are_padded_and_other_sizes_refused() {
        let columns = |vocab_size| {
            let spec = DecoderSpec { vocab_size, ..synthetic::toy_spec() };
            Dimensions::new(&spec)
                .map(|dimensions| dimensions.logit_columns())
                .map_err(|error| error.to_string())
        };
        assert_eq!(columns(1000), Ok(1000));
        assert_eq!(columns(1001), Ok(1008));
        let narrow = DecoderSpec { hidden_size: 60, ..synthetic::toy_spec() };
        assert!(Dimensions::new(&narrow).unwrap_err().to_string().contains("a hidden size of 60"));
    }
}
