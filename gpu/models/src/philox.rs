//! Philox4x32-10, the counter-based random generator of Salmon et al., "Parallel random numbers: as easy as 1, 2,
//! 3" (SC 2011). It has no state: any device computes the same number for the same place.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The generator's block function: 128 random bits for `counter` under `key`.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..ROUNDS {
        let left = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let right = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (right >> 32) as u32 ^ c[1] ^ k[0],
            right as u32,
            (left >> 32) as u32 ^ c[3] ^ k[1],
            left as u32,
        ];
        k = [k[0].wrapping_add(KEY_STEPS[0]), k[1].wrapping_add(KEY_STEPS[1])];
    }
    c
}

/// The random number, uniform in [0, 1) with 53 bits, that draws output token `position` of `choice`: key is `seed`
/// (low word first), counter is `[choice, position, 0, 0]`, and the number is made of the first two words of the block.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let block = philox4x32([choice, position, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(block[0]) << 32 | u64::from(block[1])) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the paper's library, Random123.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly() {
        let mut buckets = [0u32; 16];
        for position in 0..16_000 {
            let u = uniform(7, 3, position);
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 16.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (850..1150).contains(&n)), "{buckets:?}");
    }

    #[test]
    fn seed_choice_and_position_each_give_another_stream() {
        let base = uniform(1, 0, 0);
        assert_ne!(base, uniform(2, 0, 0));
        assert_ne!(base, uniform(1 << 32 | 1, 0, 0));
        assert_ne!(base, uniform(1, 1, 0));
        assert_ne!(base, uniform(1, 0, 1));
    }
}
