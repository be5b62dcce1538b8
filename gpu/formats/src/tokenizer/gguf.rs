//! A tokenizer.json from the metadata of a GGUF file.

use super::{byte_level, sentencepiece, vocabulary::Vocabulary};
use crate::{Metadata, error::ErrorKind};

/// Builds the tokenizer.json that the model's makers would have shipped.
///
/// # Errors
/// If the metadata lacks a part, is of a kind that is not built, or contradicts itself.
pub(crate) fn tokenizer_json(metadata: &Metadata) -> Result<Vec<u8>, ErrorKind> {
    const MODEL: &str = "tokenizer.ggml.model";
    let vocabulary = Vocabulary::read(metadata)?;
    let tokenizer = match metadata.string(MODEL)? {
        Some("gpt2") => byte_level::tokenizer(&vocabulary)?,
        Some("llama") => sentencepiece::tokenizer(&vocabulary)?,
        Some(other) => {
            return Err(ErrorKind::unsupported(MODEL, format!("tokenizer {other:?} (known: gpt2, llama)")));
        }
        None => return Err(ErrorKind::missing(format!("metadata key {MODEL}"), "the file has no tokenizer")),
    };
    Ok(tokenizer.to_string().into_bytes())
}
