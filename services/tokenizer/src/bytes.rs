//! The alphabet of byte-level tokenizers: a printable character stands for each byte.
//!
//! Printable ASCII and most of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on, in
//! order (the convention of GPT-2's vocabulary).

/// The byte that a character of the alphabet stands for.
pub fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_byte_has_one_character() {
        let bytes: Vec<u8> = ('\0'..='\u{fff}').filter_map(super::byte_of).collect();
        assert_eq!((bytes.len(), bytes.iter().collect::<BTreeSet<_>>().len()), (256, 256));
        assert_eq!(super::byte_of('Ġ'), Some(b' '));
        assert_eq!(super::byte_of('Ċ'), Some(b'\n'));
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(alphabet.iter().all(|c| super::byte_of(*c).is_some()));
    }
}
