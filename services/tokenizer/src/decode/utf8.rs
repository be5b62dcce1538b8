/// How bytes that are no UTF-8 show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// One U+FFFD for each maximal invalid sequence, as `String::from_utf8_lossy`.
    PerSequence,
    /// One U+FFFD for each byte, as tokenizers with byte fallback.
    PerByte,
}

/// Joins bytes to characters: an incomplete character is held back until it is complete or surely broken.
#[derive(Debug)]
pub struct Utf8 {
    broken: Broken,
    /// At most three bytes: the beginning of a character.
    held: Vec<u8>,
}

impl Utf8 {
    pub fn new(broken: Broken) -> Self {
        Self { broken, held: Vec::new() }
    }

    /// Appends to `text` what has become certain.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        if self.held.is_empty() {
            self.take(bytes, text);
        } else {
            let mut joined = std::mem::take(&mut self.held);
            joined.extend_from_slice(bytes);
            self.take(&joined, text);
        }
    }

    /// Nothing follows: what is held shows as broken.
    pub fn finish(&mut self, text: &mut String) {
        let held = std::mem::take(&mut self.held);
        self.replace(held.len(), text);
    }

    fn take(&mut self, mut bytes: &[u8], text: &mut String) {
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(valid) => return text.push_str(valid),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some(broken) = error.error_len() else {
                self.held = rest.to_vec();
                return;
            };
            self.replace(broken, text);
            bytes = &rest[broken..];
        }
    }

    fn replace(&self, bytes: usize, text: &mut String) {
        let count = match self.broken {
            Broken::PerSequence => bytes.min(1),
            Broken::PerByte => bytes,
        };
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
    }
}
