/// Uniform numbers of mean 0 and variance 1 from SplitMix64: the same on every machine.
pub(super) struct Uniform(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Uniform {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        Self(start.bits())
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From `-√3` to `√3`.
    pub(super) fn next(&mut self) -> f32 {
        const SCALE: f32 = 3.464_101_6;
        ((self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * SCALE
    }
}
