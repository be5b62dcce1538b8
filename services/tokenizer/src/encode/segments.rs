use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// What an entry costs beside its text and ids.
const ENTRY_BYTES: usize = 160;

/// Encoded segments by their text, the least recently used dropped first; bounded in bytes.
///
/// A segment is found by its whole text, never by a hash alone, so a hit is exact.
#[derive(Debug)]
pub struct Segments {
    entries: [HashMap<Arc<str>, Entry>; 2],
    by_use: BTreeMap<u64, (bool, Arc<str>)>,
    uses: u64,
    bytes: usize,
    bytes_at_most: usize,
}

#[derive(Debug)]
struct Entry {
    ids: Arc<[u32]>,
    used: u64,
}

impl Segments {
    pub fn new(bytes_at_most: usize) -> Self {
        Self { entries: Default::default(), by_use: BTreeMap::new(), uses: 0, bytes: 0, bytes_at_most }
    }

    /// `begins`: the segment stands at the beginning of a text.
    pub fn get(&mut self, begins: bool, text: &str) -> Option<Arc<[u32]>> {
        let entry = self.entries[usize::from(begins)].get_mut(text)?;
        self.uses += 1;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.uses, key);
        }
        entry.used = self.uses;
        Some(entry.ids.clone())
    }

    pub fn put(&mut self, begins: bool, text: &str, ids: &[u32]) {
        let cost = cost(text, ids);
        // One long text must not push out everything else.
        if cost > self.bytes_at_most / 4 || self.entries[usize::from(begins)].contains_key(text) {
            return;
        }
        while self.bytes + cost > self.bytes_at_most {
            let Some((_, (begins, text))) = self.by_use.pop_first() else { return };
            if let Some(entry) = self.entries[usize::from(begins)].remove(&text) {
                self.bytes -= self::cost(&text, &entry.ids);
            }
        }
        self.uses += 1;
        self.bytes += cost;
        let text: Arc<str> = text.into();
        self.by_use.insert(self.uses, (begins, text.clone()));
        self.entries[usize::from(begins)].insert(text, Entry { ids: ids.into(), used: self.uses });
    }
}

fn cost(text: &str, ids: &[u32]) -> usize {
    text.len() + size_of_val(ids) + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut segments = Segments::new(4 * (ENTRY_BYTES + 8));
        for text in ["aaaa", "bbbb", "cccc", "dddd"] {
            segments.put(false, text, &[1]);
        }
        assert!(segments.get(false, "aaaa").is_some());
        segments.put(false, "eeee", &[1]);
        assert!(segments.get(false, "bbbb").is_none(), "b was used longest ago");
        assert!(segments.get(false, "aaaa").is_some() && segments.get(false, "eeee").is_some());
        assert!(segments.get(true, "aaaa").is_none(), "a beginning is another segment");
        assert!(segments.bytes <= segments.bytes_at_most);
    }

    #[test]
    fn a_text_too_long_for_the_cache_is_left_out() {
        let mut segments = Segments::new(1000);
        segments.put(false, &"x".repeat(500), &[1]);
        assert_eq!((segments.bytes, segments.by_use.len()), (0, 0));
    }
}
