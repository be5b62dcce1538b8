//! What both kinds of tokenizer model have in the metadata of a GGUF file.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::{Metadata, error::ErrorKind};

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// What both kinds of model share.
pub(super) struct Vocabulary<'a> {
    pub metadata: &'a Metadata,
    pub tokens: &'a [String],
    kinds: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    pub fn read(metadata: &'a Metadata) -> Result<Self, ErrorKind> {
        const KINDS: &str = "tokenizer.ggml.token_type";
        let missing = || ErrorKind::missing(format!("metadata key {TOKENS}"), "the file has no tokenizer");
        let tokens = metadata.strings(TOKENS)?.ok_or_else(missing)?;
        let kinds = metadata.ints(KINDS)?.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(ErrorKind::malformed(
                KINDS,
                format!("{} types for {} tokens", kinds.len(), tokens.len()),
            ));
        }
        let mut seen = HashSet::with_capacity(tokens.len());
        match tokens.iter().find(|token| !seen.insert(token.as_str())) {
            Some(token) => Err(ErrorKind::malformed(TOKENS, format!("token {token:?} is given twice"))),
            None => Ok(Self { metadata, tokens, kinds }),
        }
    }

    pub fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).copied().unwrap_or(NORMAL)
    }

    /// Token to id.
    pub fn map(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect()
    }

    /// Control tokens never come out of text and are left out of it; user-defined ones are matched in text before
    /// anything else and stay in it.
    pub fn added_tokens(&self) -> Vec<Value> {
        let added = |(id, token): (usize, &String)| {
            let special = matches!(self.kind(id), CONTROL | UNKNOWN);
            (special || self.kind(id) == USER_DEFINED).then(|| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                })
            })
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn token(&self, key: &str) -> Result<Option<(u32, &'a str)>, ErrorKind> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let Some(id) = self.metadata.u32(&key)? else { return Ok(None) };
        let token = self.tokens.get(id as usize);
        let token =
            token.ok_or_else(|| ErrorKind::malformed(key, format!("{id} is not in the vocabulary")))?;
        Ok(Some((id, token)))
    }

    pub fn unknown(&self) -> Result<Option<&'a str>, ErrorKind> {
        Ok(self.token("unknown")?.map(|(_, token)| token))
    }

    /// Puts the first and last token around an encoded text, where the file asks for them.
    pub fn post_processor(&self, bos_by_default: bool) -> Result<Value, ErrorKind> {
        let wanted = |key: &str, by_default| -> Result<Option<(u32, &str)>, ErrorKind> {
            let add = self.metadata.bool(&format!("tokenizer.ggml.add_{key}_token"))?.unwrap_or(by_default);
            if add { self.token(key) } else { Ok(None) }
        };
        let (bos, eos) = (wanted("bos", bos_by_default)?, wanted("eos", false)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special = |token: Option<(u32, &str)>, segment: u32| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": segment } }))
        };
        let sequence = |name: &str, segment: u32| {
            let text = json!({ "Sequence": { "id": name, "type_id": segment } });
            [special(bos, segment), Some(text), special(eos, segment)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        let described =
            |(id, text): (u32, &str)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": bos.into_iter().chain(eos).map(described).collect::<Map<_, _>>(),
        }))
    }
}
