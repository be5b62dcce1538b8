use std::ops::Range;

use crate::{
    kv_pool::{Element, KvHead},
    norm::rms_norm,
    rope::rotate,
    simd::{LANES, Simd, kernel},
};

/// What turns the projection of a head into a query or a key: bias, norm per head, rotation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projection<'a> {
    /// Of all heads, one after the other; empty if there is none.
    pub bias: &'a [f32],
    /// Weight of the norm, shared by all heads; empty if there is none.
    pub norm: &'a [f32],
    pub eps: f32,
}

/// Queries, keys and values of one layer for all tokens of a step, as the matrix product left them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// One row per token: all query heads, all key heads, all value heads.
    pub rows: &'a [f32],
    /// Of each token's position, from [`crate::rope::Rope::angles`].
    pub angles: &'a [f32],
    /// Numbers per token in `angles`.
    pub angles_len: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub query: Projection<'a>,
    pub key: Projection<'a>,
    pub value_bias: &'a [f32],
    /// A token sees this many latest positions, itself included.
    pub window: Option<usize>,
}

/// Where the tokens of a sequence lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Page table, from position 0.
    pub pages: &'a [u32],
    /// Row of the sequence's first token in this step, and its position.
    pub row: usize,
    pub position: usize,
}

impl Inputs<'_> {
    /// Query heads that share a kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of a row.
    pub fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn head(&self, row: usize, index: usize) -> &[f32] {
        &self.rows[row * self.stride() + index * self.head_dim..][..self.head_dim]
    }

    fn angles(&self, row: usize) -> &[f32] {
        &self.angles[row * self.angles_len..][..self.angles_len]
    }

    /// Writes query head `head` of a row, ready for scores.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn query<V: Simd>(&self, row: usize, head: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.query.apply::<V>(self.head(row, head), head, self.angles(row), out) }
    }
}

impl Projection<'_> {
    #[inline(always)]
    unsafe fn apply<V: Simd>(&self, head: &[f32], index: usize, angles: &[f32], out: &mut [f32]) {
        add_bias(head, self.bias, index, out);
        assert!(angles.len() <= out.len() && (self.norm.is_empty() || self.norm.len() == out.len()));
        // SAFETY: lengths fit; instructions are the caller's promise.
        unsafe {
            if !self.norm.is_empty() {
                rms_norm::<V>(out.as_ptr(), self.norm, self.eps, out.as_mut_ptr());
            }
            rotate::<V>(out.as_mut_ptr(), angles);
        }
    }
}

/// `head` plus its part of `bias`.
fn add_bias(head: &[f32], bias: &[f32], index: usize, out: &mut [f32]) {
    out.copy_from_slice(head);
    if !bias.is_empty() {
        let bias = &bias[index * head.len()..][..head.len()];
        out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

kernel!(
    /// Stores the keys and values of kv head `head` for some tokens of a sequence. `scratch` holds two heads,
    /// padded to whole vectors.
    ///
    /// # Safety
    /// The machine has `isa`; nobody else uses the keys and values of these positions meanwhile.
    pub(crate) fn store_keys_values = store<E: Element>(
        inputs: &Inputs<'_>,
        kv: &KvHead<E>,
        head: usize,
        place: &Place<'_>,
        tokens: Range<usize>,
        scratch: &mut [f32],
    )
);

#[inline(always)]
unsafe fn store<V: Simd, E: Element>(
    inputs: &Inputs<'_>,
    kv: &KvHead<E>,
    head: usize,
    place: &Place<'_>,
    tokens: Range<usize>,
    scratch: &mut [f32],
) {
    let padded = inputs.head_dim.next_multiple_of(LANES);
    let (key, rest) = scratch.split_at_mut(padded);
    let value = &mut rest[..padded];
    key[inputs.head_dim..].fill(0.0);
    value[inputs.head_dim..].fill(0.0);
    for token in tokens {
        let row = place.row + token;
        // SAFETY: the caller's promise.
        unsafe {
            let projected = inputs.head(row, inputs.heads + head);
            inputs.key.apply::<V>(projected, head, inputs.angles(row), &mut key[..inputs.head_dim]);
            let projected = inputs.head(row, inputs.heads + inputs.kv_heads + head);
            add_bias(projected, inputs.value_bias, head, &mut value[..inputs.head_dim]);
            kv.store::<V>(place.pages, place.position + token, key, value);
        }
    }
}
