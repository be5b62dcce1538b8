//! FP8 "E4M3FN": a sign, four exponent bits of bias 7, three of mantissa; subnormals, one NaN of each sign, no infinity.

/// Largest finite value.
pub const E4M3_MAX: f32 = 448.0;
/// Rows and columns of the blocks that share a scale in FP8 checkpoints.
pub const SCALE_BLOCK: usize = 128;

pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// The nearest code, ties to the even one; what is beyond [`E4M3_MAX`] becomes that, NaN stays NaN.
pub fn e4m3_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= E4M3_MAX {
        return sign | 0x7e;
    }
    // Codes ascend with their values, eight to a binade; below the smallest normal they are as far apart as above it.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    let code = (exponent + 6) * 8 + steps;
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_the_nearest_of_its_value() {
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(e4m3_from_f32(e4m3_to_f32(code)), code);
        }
    }

    #[test]
    fn values_between_two_codes_go_to_the_nearer_one_and_ties_to_the_even_one() {
        for code in 0..0x7e {
            let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(e4m3_from_f32(middle), code + code % 2, "{middle}");
            assert_eq!(e4m3_from_f32(middle.next_down()), code, "{middle}");
            assert_eq!(e4m3_from_f32(-middle.next_up()), 0x80 | (code + 1), "{middle}");
        }
    }

    #[test]
    fn what_is_too_large_is_the_largest_and_nan_is_nan() {
        assert_eq!(e4m3_to_f32(e4m3_from_f32(1e9)), E4M3_MAX);
        assert_eq!(e4m3_to_f32(e4m3_from_f32(f32::NEG_INFINITY)), -E4M3_MAX);
        assert!(e4m3_to_f32(e4m3_from_f32(f32::NAN)).is_nan());
    }
}
