//! Damage of the kinds that parsers fall for.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, iteration: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ iteration.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

const NUMBERS: [u64; 14] =
    [0, 1, 2, 7, 8, 32, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 62, u64::MAX - 7, u64::MAX];
const TEXTS: [&str; 9] =
    ["[[[[[[[[", "{\"a\":", "}", "\"", "-1", "18446744073709551616", "1e999", "null", "\\ud800"];

/// One to four changes; half of the files also keep most of their structure that way.
pub fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if file.is_empty() {
            return;
        }
        // Headers come first: that is where most changes should fall.
        let reach = if random.below(4) == 0 { file.len() } else { file.len().min(2048) };
        let at = random.below(reach);
        match random.below(9) {
            0 => file[at] ^= 1 << random.below(8),
            1 => file[at] = random.of(&[0, 1, 9, 0x7f, 0x80, 0xff, b'0', b'9', b'"']),
            2 => overwrite(file, at, &random.of(&NUMBERS).to_le_bytes()),
            3 => overwrite(file, at & !3, &(random.of(&NUMBERS) as u32).to_le_bytes()),
            4 => file.truncate(at),
            5 => insert(file, at, random.of(&TEXTS).as_bytes()),
            6 => drop(file.drain(at..(at + 1 + random.below(16)).min(file.len()))),
            7 => {
                let piece = file[at..(at + 1 + random.below(64)).min(file.len())].to_vec();
                insert(file, at, &piece);
            }
            _ => {
                let length = file.len() as u64 + random.below(3) as u64;
                overwrite(file, at, &length.wrapping_sub(1).to_le_bytes());
            }
        }
    }
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    for (slot, byte) in file[at..].iter_mut().zip(bytes) {
        *slot = *byte;
    }
}

fn insert(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.splice(at..at, bytes.iter().copied());
}
