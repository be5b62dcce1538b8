//! The small JSON files of a model folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    error::{Error, ErrorKind, InFile},
    map::read_small,
};

pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG_FILE: &str = "generation_config.json";
pub(crate) const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// Tokenizer configurations list their added tokens and may carry a template.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a file that holds a JSON object; `None` if there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_object(&read_small(path, MAX_BYTES)?).map(Some).in_file(path)
}

pub(crate) fn parse_object(json: &[u8]) -> Result<Map<String, Value>, ErrorKind> {
    match serde_json::from_slice(json).map_err(|error| ErrorKind::malformed("JSON", error))? {
        Value::Object(object) => Ok(object),
        _ => Err(ErrorKind::malformed("JSON", "not an object")),
    }
}
