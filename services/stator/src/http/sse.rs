//! Server-sent events from the pieces in which they arrive.

use bytes::{Buf, BytesMut};

/// An event that grows beyond this is no answer of an API of this kind.
const EVENT_AT_MOST: usize = 16 << 20;

/// Cuts a byte stream into the data of its events; comments and other fields are skipped.
#[derive(Default)]
pub struct Events {
    buffer: BytesMut,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Oversized;

impl Events {
    /// Takes what has arrived.
    ///
    /// # Errors
    /// If an event is longer than any server should send.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Oversized> {
        if self.buffer.len() + piece.len() > EVENT_AT_MOST {
            return Err(Oversized);
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// The data of the next event that is complete.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let (length, separator) = self.end_of_event()?;
            let event = self.buffer.split_to(length);
            self.buffer.advance(separator);
            let mut data = Vec::with_capacity(length);
            for line in event[..].split(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if let Some(rest) = line.strip_prefix(b"data:") {
                    if !data.is_empty() {
                        data.push(b'\n');
                    }
                    data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
                }
            }
            if !data.is_empty() {
                return Some(data);
            }
        }
    }

    /// Length of the first event and of the empty line after it.
    fn end_of_event(&self) -> Option<(usize, usize)> {
        let bytes = &self.buffer[..];
        let mut at = 0;
        while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
            let newline = at + found;
            match bytes[newline + 1..] {
                [b'\n', ..] => return Some((newline, 2)),
                [b'\r', b'\n', ..] => return Some((newline, 3)),
                _ => at = newline + 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.next()).map(|data| String::from_utf8(data).unwrap()).collect()
    }

    #[test]
    fn comments_are_skipped_and_lines_joined() {
        let mut events = Events::default();
        events.feed(b": alive\n\ndata: a\ndata:b\n\nevent: x\r\ndata: c\r\n\r\ndata: half").unwrap();
        assert_eq!(drain(&mut events), ["a\nb", "c"]);
        events.feed(b"\n\n").unwrap();
        assert_eq!(drain(&mut events), ["half"]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        assert_eq!(events.feed(&vec![b'x'; EVENT_AT_MOST + 1]), Err(Oversized));
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_does_not_matter(cuts in prop::collection::vec(1usize..20, 0..60)) {
            let stream = b"data: {\"a\":1}\n\n: c\n\ndata: {\"b\":[2]}\r\n\r\ndata: [DONE]\n\n";
            let (mut events, mut seen, mut at) = (Events::default(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([stream.len()]) {
                let end = (at + cut).min(stream.len());
                events.feed(&stream[at..end]).unwrap();
                at = end;
                seen.extend(drain(&mut events));
            }
            prop_assert_eq!(seen, ["{\"a\":1}", "{\"b\":[2]}", "[DONE]"]);
        }
    }
}
