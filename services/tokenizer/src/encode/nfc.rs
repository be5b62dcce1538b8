/// Whether a text is surely in Unicode's normal form C: made of characters that neither decompose, compose nor
/// reorder. False means only that it is not known.
pub fn is_surely_normal(text: &str) -> bool {
    text.is_ascii() || text.chars().all(is_inert)
}

fn is_inert(c: char) -> bool {
    matches!(c,
        '\0'..='\u{2ff}'
        | '\u{400}'..='\u{482}' | '\u{48a}'..='\u{52f}' // Cyrillic
        | '\u{5d0}'..='\u{5ea}' | '\u{621}'..='\u{64a}' // Hebrew and Arabic letters
        | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' // punctuation
        | '\u{2190}'..='\u{21ff}' | '\u{2500}'..='\u{27bf}' // arrows, boxes, shapes
        | '\u{3001}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fe}' // Japanese
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' // Han
        | '\u{ac00}'..='\u{d7a3}' // Hangul
        | '\u{ff01}'..='\u{ff5e}' // full-width forms
        | '\u{1f300}'..='\u{1faff}') // emoji
}

#[cfg(test)]
mod tests {
    use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};

    #[test]
    fn inert_characters_stay_as_they_are_in_any_neighbourhood() {
        let all: Vec<char> = ('\0'..=char::MAX).filter(|c| super::is_inert(*c)).collect();
        let forward: String = all.iter().collect();
        let mixed: String = (0..all.len()).map(|i| all[i * 7919 % all.len()]).collect();
        for text in [forward, mixed] {
            let mut normalized = NormalizedString::from(text.as_str());
            NFC.normalize(&mut normalized).unwrap();
            assert!(normalized.get() == text);
        }
        assert!(!super::is_surely_normal("e\u{301}"));
    }
}
