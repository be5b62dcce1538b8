//! Character classes of the splitting patterns, from the tables of the very regex engine that `tokenizers` uses.

use std::sync::LazyLock;

use regex_syntax::{
    Parser,
    hir::{Class as HirClass, HirKind},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Neither of the others.
    Other = 0,
    /// `\p{L}`
    Letter = 1,
    /// `\p{N}`
    Number = 2,
    /// `\s`
    Space = 3,
}

const CHARS: usize = 0x11_0000;

/// Two bits a character.
static TABLE: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut table = vec![0u8; CHARS / 4];
    for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
        let parsed = Parser::new().parse(pattern).expect("the pattern is a constant");
        let HirKind::Class(HirClass::Unicode(ranges)) = parsed.kind() else { continue };
        for range in ranges.iter() {
            for c in u32::from(range.start())..=u32::from(range.end()) {
                table[c as usize / 4] |= (class as u8) << (c % 4 * 2);
            }
        }
    }
    table.into_boxed_slice()
});

/// Looks classes up.
#[derive(Clone, Copy)]
pub struct Classes(&'static [u8]);

impl Classes {
    pub fn load() -> Self {
        Self(&TABLE)
    }

    #[inline]
    pub fn of(self, c: char) -> Class {
        let code = u32::from(c);
        match self.0[code as usize / 4] >> (code % 4 * 2) & 3 {
            1 => Class::Letter,
            2 => Class::Number,
            3 => Class::Space,
            _ => Class::Other,
        }
    }
}
