/// Longest word in bytes, and most ids of a word, that a slot holds.
const WORD_BYTES: usize = 30;
const WORD_IDS: usize = 8;
const SLOTS: usize = 1 << 14;

/// Words that one thread encoded lately: a direct-mapped table of one cache line a word, one mebibyte in all.
pub struct Words {
    slots: Box<[Slot]>,
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Slot {
    /// 0: empty.
    bytes: u8,
    count: u8,
    word: [u8; WORD_BYTES],
    ids: [u32; WORD_IDS],
}

impl Default for Words {
    fn default() -> Self {
        let empty = Slot { bytes: 0, count: 0, word: [0; WORD_BYTES], ids: [0; WORD_IDS] };
        Self { slots: vec![empty; SLOTS].into_boxed_slice() }
    }
}

impl Words {
    /// Appends the ids of `word`, from the table or made by `encode`.
    #[inline]
    pub fn encode(&mut self, word: &[u8], ids: &mut Vec<u32>, encode: impl FnOnce(&[u8], &mut Vec<u32>)) {
        if word.is_empty() || word.len() > WORD_BYTES {
            return encode(word, ids);
        }
        let slot = &mut self.slots[hash(word) as usize % SLOTS];
        if usize::from(slot.bytes) == word.len() && &slot.word[..word.len()] == word {
            ids.extend_from_slice(&slot.ids[..usize::from(slot.count)]);
            return;
        }
        let start = ids.len();
        encode(word, ids);
        let made = &ids[start..];
        if made.len() <= WORD_IDS {
            slot.bytes = word.len() as u8;
            slot.count = made.len() as u8;
            slot.word[..word.len()].copy_from_slice(word);
            slot.ids[..made.len()].copy_from_slice(made);
        }
    }
}

fn hash(word: &[u8]) -> u64 {
    let mut hash = word.len() as u64;
    for chunk in word.chunks(8) {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(eight)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    hash >> 40
}
