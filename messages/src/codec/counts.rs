/// Whether the MessagePack value at the start of `body` can have as many items as its arrays and maps announce: each
/// takes a byte at least. Decoders reserve room for announced items, up to 1 MiB at each level, before they read one.
pub fn fit(body: &[u8]) -> bool {
    let (mut at, mut open) = (0, 1);
    while open > 0 {
        let Some((bytes, items)) = head(&body[at..]) else { return false };
        at += bytes;
        open += items;
        open -= 1;
        if at > body.len() || open > body.len() - at {
            return false;
        }
    }
    true
}

/// Bytes of the value at the start of `rest` without its items, and how many items follow. None if its head is cut
/// off, or is the one that MessagePack leaves undefined.
///
/// <https://github.com/msgpack/msgpack/blob/master/spec.md#formats>
fn head(rest: &[u8]) -> Option<(usize, usize)> {
    let length = |width: usize| {
        let digits = rest.get(1..=width)?;
        Some(digits.iter().fold(0, |number, &digit| number << 8 | usize::from(digit)))
    };
    let marker = *rest.first()?;
    let small = |bits: u8| usize::from(marker & bits);
    Some(match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (1, 0),
        0x80..=0x8f => (1, 2 * small(0x0f)),
        0x90..=0x9f => (1, small(0x0f)),
        0xa0..=0xbf => (1 + small(0x1f), 0),
        0xc4 | 0xd9 => (2 + length(1)?, 0),
        0xc5 | 0xda => (3 + length(2)?, 0),
        0xc6 | 0xdb => (5 + length(4)?, 0),
        0xc7 => (3 + length(1)?, 0),
        0xc8 => (4 + length(2)?, 0),
        0xc9 => (6 + length(4)?, 0),
        0xcc | 0xd0 => (2, 0),
        0xcd | 0xd1 => (3, 0),
        0xca | 0xce | 0xd2 => (5, 0),
        0xcb | 0xcf | 0xd3 => (9, 0),
        0xd4..=0xd8 => (2 + (1 << (marker - 0xd4)), 0),
        0xdc => (3, length(2)?),
        0xdd => (5, length(4)?),
        0xde => (3, 2 * length(2)?),
        0xdf => (5, 2 * length(4)?),
        0xc1 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_is_measured() {
        let values: [&[u8]; 22] = [
            &[0x07],
            &[0xc0],
            &[0xc3],
            &[0xff],
            &[0xa2, b'h', b'i'],
            &[0xc4, 2, 1, 2],
            &[0xc5, 0, 2, 1, 2],
            &[0xc6, 0, 0, 0, 2, 1, 2],
            &[0xc7, 2, 9, 1, 2],
            &[0xc8, 0, 2, 9, 1, 2],
            &[0xc9, 0, 0, 0, 2, 9, 1, 2],
            &[0xca, 0, 0, 0, 0],
            &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xcc, 1],
            &[0xcd, 0, 1],
            &[0xd4, 9, 1],
            &[0xd8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            &[0x82, 0xa1, b'a', 1, 0xa1, b'b', 0x92, 2, 3],
            &[0xdc, 0, 2, 1, 2],
            &[0xdd, 0, 0, 0, 1, 1],
            &[0xde, 0, 1, 1, 2],
            &[0xdf, 0, 0, 0, 1, 1, 2],
        ];
        for value in values {
            assert!(fit(value), "{value:x?}");
            assert!(!fit(&value[..value.len() - 1]), "cut off: {value:x?}");
        }
    }

    #[test]
    fn announced_items_beyond_the_body_do_not_fit() {
        for body in
            [&[0xdd, 0xff, 0xff, 0xff, 0xff, 1][..], &[0xdf, 0, 0, 0, 2, 1, 2, 3], &[0x92, 0xdc, 0, 9, 1, 1]]
        {
            assert!(!fit(body), "{body:x?}");
        }
    }
}
