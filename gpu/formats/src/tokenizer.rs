//! Tokenizers: the tokenizer.json of a model folder, or the same built from GGUF metadata.

mod byte_level;
mod gguf;
mod pretokenizer;
mod sentencepiece;
mod vocabulary;

use std::path::Path;

pub(crate) use gguf::tokenizer_json as from_gguf;
pub(crate) use vocabulary::CONTROL;

use crate::{
    error::{Error, ErrorKind, InFile},
    map::read_small,
};

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

pub(crate) fn from_folder(folder: &Path) -> Result<Vec<u8>, Error> {
    let file = folder.join(TOKENIZER_FILE);
    if file.is_file() {
        return read_small(&file, MAX_TOKENIZER_BYTES);
    }
    let older = ["tokenizer.model", "vocab.json"].into_iter().find(|name| folder.join(name).is_file());
    let help = match older {
        Some(older) => format!(
            "the folder has {older} only; save the tokenizer again with transformers \
             (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        ),
        None => "copy it from where the model's weights came from".into(),
    };
    Err(ErrorKind::missing(TOKENIZER_FILE, help)).in_file(folder)
}

/// Builds a tokenizer, checking that the model has an embedding for each of its ids.
pub(crate) fn build(json: &[u8], vocab_size: u32) -> Result<tokenizers::Tokenizer, ErrorKind> {
    let tokenizer =
        tokenizers::Tokenizer::from_bytes(json).map_err(|error| ErrorKind::malformed("tokenizer", error))?;
    match tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
        Some((token, id)) if id >= vocab_size => {
            let reason = format!("token {token:?} has id {id}, the model's vocabulary is {vocab_size}");
            Err(ErrorKind::malformed("tokenizer", reason))
        }
        _ => Ok(tokenizer),
    }
}

#[cfg(test)]
mod tests;
