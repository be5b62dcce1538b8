//! Rotary position embedding (Su et al., 2021), half-split layout.

use models::{DecoderSpec, RopeTable, rope_frequencies};

use crate::simd::{LANES, Simd};

mod trig;

/// Angles of all positions of one model.
#[derive(Debug)]
pub(crate) struct Rope {
    table: RopeTable,
}

impl Rope {
    /// For sequences of up to `context_length` tokens.
    pub fn new(spec: &DecoderSpec, context_length: u32) -> Self {
        Self { table: rope_frequencies(&spec.rope, context_length) }
    }

    /// Pairs of elements that turn.
    pub fn pairs(&self) -> usize {
        self.table.inverse_frequencies.len()
    }

    /// Writes the cosines of a position's angles, then the sines: `2 * pairs` numbers. Angles are products in f32, as
    /// models are trained with them.
    pub fn angles(&self, position: u32, out: &mut [f32]) {
        let (cosines, sines) = out.split_at_mut(self.pairs());
        for ((frequency, cos), sin) in self.table.inverse_frequencies.iter().zip(cosines).zip(sines) {
            let angle = trig::sin_cos(position as f32 * frequency);
            *sin = (angle.0 * f64::from(self.table.attention_factor)) as f32;
            *cos = (angle.1 * f64::from(self.table.attention_factor)) as f32;
        }
    }
}

/// Turns the first `2 * pairs` elements of a head in place by what [`Rope::angles`] wrote.
///
/// # Safety
/// That of [`Simd`]; `head` has `2 * pairs` elements.
#[inline(always)]
pub(crate) unsafe fn rotate<V: Simd>(head: *mut f32, angles: &[f32]) {
    let pairs = angles.len() / 2;
    let mut i = 0;
    while i < pairs {
        let lanes = LANES.min(pairs - i);
        // SAFETY: the caller's promise; no vector goes beyond `pairs`.
        unsafe {
            let (low, high) = (head.add(i), head.add(pairs + i));
            let (a, b) = (V::load_first(low, lanes), V::load_first(high, lanes));
            let cos = V::load_first(angles.as_ptr().add(i), lanes);
            let sin = V::load_first(angles.as_ptr().add(pairs + i), lanes);
            V::store_first(V::sub(V::mul(a, cos), V::mul(b, sin)), low, lanes);
            V::store_first(V::add(V::mul(b, cos), V::mul(a, sin)), high, lanes);
        }
        i += LANES;
    }
}
