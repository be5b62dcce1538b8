//! XXH3-64 of the layers of a frame, seeded with the place they are for: bytes that arrive elsewhere do not match.
//!
//! XXH3 because it reads faster than memory delivers and a 64-bit value misses one random corruption in 2^64. It does not
//! stop a forger; whoever can write frames has proved that it knows the key. `twox-hash` has it for AVX2; with AVX-512 an
//! accumulator is one register, and a copy costs no second pass over the bytes. Both give the same values.

use super::{Epoch, PageIndex, wire::seed};

/// The checksum of layers from `layer` on of page `index`.
pub(super) fn checksum(epoch: Epoch, index: PageIndex, layer: u32, bytes: &[u8]) -> u64 {
    let seed = seed(epoch, index, layer);
    #[cfg(target_arch = "x86_64")]
    if avx512::serves(bytes) {
        // SAFETY: the CPU has the instructions.
        return unsafe { avx512::hash(seed, bytes, None) };
    }
    twox_hash::XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// Copies the layers and returns their checksum.
pub(super) fn copy(epoch: Epoch, index: PageIndex, layer: u32, from: &[u8], to: &mut [u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if avx512::serves(from) {
        // SAFETY: the CPU has the instructions.
        return unsafe { avx512::hash(seed(epoch, index, layer), from, Some(to)) };
    }
    to.copy_from_slice(from);
    checksum(epoch, index, layer, from)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! After the specification of XXH3, for inputs above 240 bytes.

    use std::arch::x86_64::*;

    /// The default secret, as little-endian words.
    const SECRET: [u64; 24] = [
        0xbe4b_a423_396c_feb8,
        0x1cad_21f7_2c81_017c,
        0xdb97_9083_e96d_d4de,
        0x1f67_b3b7_a4a4_4072,
        0x78e5_c0cc_4ee6_79cb,
        0x2172_ffcc_7dd0_5a82,
        0x8e24_43f7_7446_08b8,
        0x4c26_3a81_e690_35e0,
        0xcb00_c391_bb52_283c,
        0xa32e_531b_8b65_d088,
        0x4ef9_0da2_9748_6471,
        0xd8ac_dea9_46ef_1938,
        0x3f34_9ce3_3f76_faa8,
        0x1d4f_0bc7_c7bb_dcf9,
        0x3159_b4cd_4be0_518a,
        0x6473_78d9_c97e_9fc8,
        0xc3eb_d334_83ac_c5ea,
        0xeb63_13fa_ffa0_81c5,
        0x49da_f0b7_51dd_0d17,
        0x9e68_d429_2655_16d3,
        0xfca1_477d_58be_162b,
        0xce31_d07a_d1b8_f88f,
        0x2804_1695_8f3a_cb45,
        0x7e40_4bbb_cafb_d7af,
    ];
    const SECRET_BYTES: usize = 8 * SECRET.len();
    const PRIME32: [u64; 3] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];
    const PRIME64: [u64; 5] = [
        0x9e37_79b1_85eb_ca87,
        0xc2b2_ae3d_27d4_eb4f,
        0x1656_67b1_9e37_79f9,
        0x85eb_ca77_c2b2_ae63,
        0x27d4_eb2f_1656_67c5,
    ];
    const STRIPE: usize = 64;
    /// Stripes of a block: the secret moves on by 8 bytes with each.
    const STRIPES: usize = (SECRET_BYTES - STRIPE) / 8;
    const BLOCK: usize = STRIPES * STRIPE;

    /// Whether [`hash`] may be called.
    pub fn serves(bytes: &[u8]) -> bool {
        bytes.len() > 240 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
    }

    /// The default secret, as the seed changes it.
    fn secret(seed: u64) -> [u8; SECRET_BYTES] {
        let mut secret = [0; SECRET_BYTES];
        let (words, _) = secret.as_chunks_mut::<8>();
        for ((place, word), plain) in words.iter_mut().enumerate().zip(SECRET) {
            let seeded = if place % 2 == 0 { plain.wrapping_add(seed) } else { plain.wrapping_sub(seed) };
            *word = seeded.to_le_bytes();
        }
        secret
    }

    /// The hash of `from`, which is copied to `to` on the way.
    ///
    /// # Panics
    /// If `from` has at most 240 bytes, or `to` has another length.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub fn hash(seed: u64, from: &[u8], to: Option<&mut [u8]>) -> u64 {
        assert!(from.len() > 240 && to.as_ref().is_none_or(|to| to.len() == from.len()));
        let secret = secret(seed);
        match to {
            // SAFETY: both are of the same length.
            Some(to) => unsafe { run::<true>(&secret, from, to.as_mut_ptr()) },
            // SAFETY: nothing is stored.
            None => unsafe { run::<false>(&secret, from, std::ptr::null_mut()) },
        }
    }

    /// # Safety
    /// With `COPY`, `to` can take as many bytes as `from` has.
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn run<const COPY: bool>(secret: &[u8; SECRET_BYTES], from: &[u8], to: *mut u8) -> u64 {
        let [a, b, c] = PRIME32;
        let [d, e, f, g, h] = PRIME64;
        let start = [c, d, e, f, g, b, h, a];
        let (data, keys) = (from.as_ptr(), secret.as_ptr());
        // SAFETY: `start` has the bytes of a register.
        let mut sums = unsafe { _mm512_loadu_si512(start.as_ptr().cast()) };
        // Takes in the stripe at `at`, with the key at `key`.
        let take = |sums: __m512i, at: usize, key: usize| {
            // SAFETY: callers name stripes within `from`, and so within `to`, and keys within the secret.
            unsafe {
                let stripe = _mm512_loadu_si512(data.add(at).cast());
                if COPY {
                    _mm512_storeu_si512(to.add(at).cast(), stripe);
                }
                let keyed = _mm512_xor_si512(stripe, _mm512_loadu_si512(keys.add(key).cast()));
                let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
                let swapped = _mm512_shuffle_epi32::<0b01_00_11_10>(stripe);
                _mm512_add_epi64(sums, _mm512_add_epi64(product, swapped))
            }
        };
        let blocks = (from.len() - 1) / BLOCK;
        let prime = _mm512_set1_epi64(a as i64);
        // SAFETY: the last key begins 64 bytes before the end of the secret.
        let scramble = unsafe { _mm512_loadu_si512(keys.add(SECRET_BYTES - STRIPE).cast()) };
        for block in 0..blocks {
            for stripe in 0..STRIPES {
                sums = take(sums, block * BLOCK + stripe * STRIPE, 8 * stripe);
            }
            let mixed = _mm512_xor_si512(_mm512_xor_si512(sums, _mm512_srli_epi64::<47>(sums)), scramble);
            sums = _mm512_mullo_epi64(mixed, prime);
        }
        for stripe in 0..(from.len() - 1 - blocks * BLOCK) / STRIPE {
            sums = take(sums, blocks * BLOCK + stripe * STRIPE, 8 * stripe);
        }
        sums = take(sums, from.len() - STRIPE, SECRET_BYTES - STRIPE - 7);
        let mut words = [0u64; 8];
        // SAFETY: `words` has the bytes of a register.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), sums) };
        merge(&words, secret, from.len() as u64)
    }

    fn merge(sums: &[u64; 8], secret: &[u8; SECRET_BYTES], len: u64) -> u64 {
        let (keys, _) = secret[11..].as_chunks::<8>();
        let (pairs, key_pairs) = (sums.as_chunks::<2>().0, keys.as_chunks::<2>().0);
        let sum = pairs.iter().zip(key_pairs).fold(len.wrapping_mul(PRIME64[0]), |sum, (pair, keys)| {
            let [a, b] = [0, 1].map(|side| u128::from(pair[side] ^ u64::from_le_bytes(keys[side])));
            let product = a * b;
            sum.wrapping_add(product as u64 ^ (product >> 64) as u64)
        });
        let mixed = (sum ^ (sum >> 37)).wrapping_mul(0x1656_6791_9e37_79f9);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_xxh3_whatever_the_length_and_a_copy_is_whole() {
        let bytes: Vec<u8> =
            (0..70_000u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let lengths = (0..300).chain([1023, 1024, 1025, 1088, 2048, 12_288, 65_536, 69_999]);
        for length in lengths {
            for epoch in [0, 7, u64::MAX - 3].map(Epoch) {
                let (index, layer, bytes) = (PageIndex(3), 5, &bytes[1..=length]);
                let expected = twox_hash::XxHash3_64::oneshot_with_seed(seed(epoch, index, layer), bytes);
                assert_eq!(checksum(epoch, index, layer, bytes), expected, "{length} bytes");
                let mut to = vec![0; length];
                assert_eq!(copy(epoch, index, layer, bytes, &mut to), expected, "{length} bytes, copied");
                assert!(to == bytes, "{length} bytes, copied");
            }
        }
    }
}
