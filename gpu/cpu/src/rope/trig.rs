//! Sine and cosine that are the same on every machine, which those of a C library are not.

use std::f64::consts::FRAC_2_PI;

/// π / 2 in two parts; multiples of the first up to 2^20 are exact.
const HALF_PI: [f64; 2] = [f64::from_bits(0x3FF9_21FB_5440_0000), 6.077_100_506_506_192e-11];

/// (sine, cosine) of an angle of magnitude up to a million, within 1e-10 of the exact ones.
pub(super) fn sin_cos(angle: f32) -> (f64, f64) {
    let x = f64::from(angle);
    let quarter = (x * FRAC_2_PI).round_ties_even();
    let r = x - quarter * HALF_PI[0] - quarter * HALF_PI[1];
    let (sin, cos) = (sin_near_zero(r), cos_near_zero(r));
    match quarter as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Taylor series, for magnitudes up to π / 4.
fn sin_near_zero(x: f64) -> f64 {
    let square = x * x;
    let series = [1.0, 6.0, 120.0, 5040.0, 362_880.0, 39_916_800.0, 6_227_020_800.0];
    x * alternating(&series, square)
}

/// Taylor series, for magnitudes up to π / 4.
fn cos_near_zero(x: f64) -> f64 {
    let series = [1.0, 2.0, 24.0, 720.0, 40_320.0, 3_628_800.0, 479_001_600.0, 87_178_291_200.0];
    alternating(&series, x * x)
}

/// `1/d0 - x/d1 + x²/d2 - …`
fn alternating(denominators: &[f64], x: f64) -> f64 {
    denominators.iter().rev().fold(0.0, |sum, denominator| 1.0 / denominator - x * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_and_cosine_are_accurate() {
        let mut worst = 0.0f64;
        for i in 0..200_000u32 {
            let angle = (i as f32 * 0.77).powf(1.15) * if i % 2 == 0 { 1.0 } else { -1.0 };
            let (sin, cos) = sin_cos(angle);
            let exact = f64::from(angle).sin_cos();
            worst = worst.max((sin - exact.0).abs()).max((cos - exact.1).abs());
        }
        assert!(worst < 1e-10, "{worst}");
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
