//! Passes over a whole row of logits, in plain Rust that the compiler vectorises. They are compiled twice, for the
//! baseline and for AVX2; without fused multiply-adds or reordering both give the same bits.

use crate::TokenId;

/// Logits summed up by one entry of a row's maxima and sums.
pub(super) const BLOCK: usize = 64;

/// Independent running values of a reduction.
const LANES: usize = 16;

/// Compiles a pass for AVX2 as well and picks one at run time.
macro_rules! vectorised {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) {
                    $body($($arg),*);
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has AVX2.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body($($arg),*);
        }
    };
}

vectorised!(
    /// The largest logit of each block; NaN counts as minus infinity.
    block_maxima, block_maxima_body, (logits: &[f32], maxima: &mut Vec<f32>)
);

vectorised!(
    /// For each block, the sum of `exp((logit - max) * scale)`.
    block_exp_sums, block_exp_sums_body, (logits: &[f32], max: f32, scale: f32, sums: &mut Vec<f32>)
);

#[inline(always)]
fn block_maxima_body(logits: &[f32], maxima: &mut Vec<f32>) {
    maxima.clear();
    maxima.reserve(logits.len().div_ceil(BLOCK));
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    for block in blocks {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        maxima.push(max(&lanes));
    }
    if !rest.is_empty() {
        maxima.push(max(rest));
    }
}

#[inline(always)]
pub(super) fn block_exp_sums_body(logits: &[f32], max: f32, scale: f32, sums: &mut Vec<f32>) {
    sums.clear();
    sums.reserve(logits.len().div_ceil(BLOCK));
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    for block in blocks {
        let mut lanes = [0.0f32; LANES];
        for chunk in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                lanes[lane] += exp((chunk[lane] - max) * scale);
            }
        }
        sums.push(lanes.iter().sum());
    }
    if !rest.is_empty() {
        sums.push(rest.iter().map(|&logit| exp((logit - max) * scale)).sum());
    }
}

/// The largest number, minus infinity if there is none.
#[inline(always)]
pub(super) fn max(numbers: &[f32]) -> f32 {
    numbers.iter().fold(f32::NEG_INFINITY, |best, &x| if x > best { x } else { best })
}

/// The sum of all blocks.
pub(super) fn total(sums: &[f32]) -> f64 {
    sums.iter().map(|&sum| f64::from(sum)).sum()
}

/// A logit that is no number counts as minus infinity.
pub(super) fn number(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit }
}

/// The lowest token whose logit is at least `floor`, 0 if there is none.
pub(super) fn first_at_least(logits: &[f32], maxima: &[f32], floor: f32) -> TokenId {
    let Some(block) = maxima.iter().position(|&max| max >= floor) else { return 0 };
    let start = block * BLOCK;
    let offset = logits[start..].iter().position(|&logit| number(logit) >= floor);
    (start + offset.unwrap_or(0)) as TokenId
}

/// `e` to the power of `x ≤ 0`, within 2 units of the last place; exactly 0 below -87 and for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has trailing zeros, so that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x >= -87.0 { p * power } else { 0.0 }
}
