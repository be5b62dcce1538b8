//! Rotary frequencies, computed in the steps and precision of transformers (`modeling_rope_utils.py`) so that the
//! results agree to the last bits.

use std::f64::consts::TAU;

use crate::{RopeScaling, RopeSpec};

/// How fast each pair of elements turns. At position `p` pair `i`, elements `i` and `i + dim / 2` of a head, turns
/// by `p * inverse_frequencies[i]`; cosine and sine are multiplied by `attention_factor`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// `dim / 2` of them, in radians per position.
    pub inverse_frequencies: Vec<f32>,
    pub attention_factor: f32,
}

/// The table for sequences of up to `sequence_len` tokens. Only dynamic scaling depends on the length, beyond the
/// original context: give it the longest sequence that will be served, so that a position turns the same in all.
pub fn rope_frequencies(rope: &RopeSpec, sequence_len: u32) -> RopeTable {
    let unscaled = || powers(rope.theta.into(), rope.dim).map(|power| 1.0 / power).collect::<Vec<f32>>();
    let mut attention_factor = 1.0;
    let inverse_frequencies = match &rope.scaling {
        RopeScaling::None => unscaled(),
        RopeScaling::Linear { factor } => {
            unscaled().into_iter().map(|frequency| frequency / factor).collect()
        }
        RopeScaling::Factors { factors } => {
            unscaled().into_iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
        }
        RopeScaling::Dynamic { factor, original_context } => {
            let (factor, original) = (f64::from(*factor), f64::from(*original_context));
            let length = f64::from(sequence_len).max(original);
            let exponent = f64::from(rope.dim) / f64::from(rope.dim - 2);
            let theta = f64::from(rope.theta) * (factor * length / original - (factor - 1.0)).powf(exponent);
            powers(theta, rope.dim).map(|power| 1.0 / power).collect()
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let context = *original_context as f32;
            let smooth = |frequency: f32| {
                let wavelength = TAU as f32 / frequency;
                if wavelength > context / low_freq_factor {
                    frequency / factor
                } else if wavelength < context / high_freq_factor {
                    frequency
                } else {
                    let smooth =
                        (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            unscaled().into_iter().map(smooth).collect()
        }
        RopeScaling::Yarn { factor, attention_factor: given, .. } => {
            let usual = if *factor > 1.0 { (0.1 * f64::from(*factor).ln() + 1.0) as f32 } else { 1.0 };
            attention_factor = given.unwrap_or(usual);
            yarn(rope)
        }
    };
    RopeTable { inverse_frequencies, attention_factor }
}

/// `theta ^ (2i / dim)` for each pair.
fn powers(theta: f64, dim: u32) -> impl Iterator<Item = f32> {
    let theta = f64::from(theta as f32);
    (0..dim).step_by(2).map(move |i| theta.powf((i as f32 / dim as f32).into()) as f32)
}

/// Interpolates slow pairs by `factor`, leaves fast ones alone, with a linear ramp between.
fn yarn(rope: &RopeSpec) -> Vec<f32> {
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } = rope.scaling
    else {
        return Vec::new();
    };
    let dim = f64::from(rope.dim);
    let pair_with_turns = |turns: f32| {
        dim * (f64::from(original_context) / (f64::from(turns) * TAU)).ln()
            / (2.0 * f64::from(rope.theta).ln())
    };
    let (mut low, mut high) = (pair_with_turns(beta_fast), pair_with_turns(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    let scaled = |(pair, power): (usize, f32)| {
        let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor * power) * (1.0 - keep) + 1.0 / power * keep
    };
    powers(rope.theta.into(), rope.dim).enumerate().map(scaled).collect()
}

#[cfg(test)]
mod tests;
