use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Metadata,
    error::{Error, ErrorKind, InFile},
    json::{self, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE},
    tokenizer::TOKENIZER_FILE,
};

/// The tokens with a role, as chat templates and the end of generation need them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    /// Ids that end a choice: those of config.json, of generation_config.json and of the tokenizer, each once.
    pub eos: Vec<u32>,
    /// Texts by role, such as `bos_token` and `eos_token`: the variables that chat templates see.
    pub texts: BTreeMap<String, String>,
}

const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Texts that end a turn or a message in chat models. GGUF metadata often names just one of a model's several ends.
const TURN_ENDS: [&str; 3] = ["<|eot_id|>", "<|eom_id|>", "<|im_end|>"];

impl SpecialTokens {
    /// Reads tokenizer_config.json, or special_tokens_map.json where that has no such fields; `eos` starts with
    /// the ids of the configuration files.
    pub(crate) fn from_folder(
        folder: &Path,
        bos: Option<u32>,
        eos: Vec<u32>,
        tokenizer_json: &[u8],
    ) -> Result<Self, Error> {
        let mut texts = BTreeMap::new();
        for name in [SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE] {
            let file = folder.join(name);
            if let Some(object) = json::read_object(&file)? {
                texts.extend(roles(&object).in_file(&file)?);
            }
        }
        let ids = Ids { json: tokenizer_json };
        let id_of = |role: &str| match texts.get(role) {
            Some(text) => ids.find(text).in_file(&folder.join(TOKENIZER_FILE)),
            None => Ok(None),
        };
        let bos = id_of("bos_token")?.or(bos);
        let mut tokens = Self { bos, eos: Vec::new(), texts: BTreeMap::new() };
        eos.into_iter().chain(id_of("eos_token")?).for_each(|id| tokens.ends_with(id));
        tokens.texts = texts;
        Ok(tokens)
    }

    pub(crate) fn from_gguf(metadata: &Metadata, eos: &[u32]) -> Result<Self, ErrorKind> {
        let vocabulary = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let kinds = metadata.ints("tokenizer.ggml.token_type")?.unwrap_or_default();
        let mut tokens = Self { bos: metadata.u32("tokenizer.ggml.bos_token_id")?, ..Self::default() };
        eos.iter().for_each(|id| tokens.ends_with(*id));
        for (id, (text, kind)) in vocabulary.iter().zip(kinds).enumerate() {
            if *kind == crate::tokenizer::CONTROL && TURN_ENDS.contains(&text.as_str()) {
                tokens.ends_with(id as u32);
            }
        }
        let roles =
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
        for (role, name) in roles {
            let key = format!("tokenizer.ggml.{name}_token_id");
            if let Some(id) = metadata.u32(&key)? {
                let text = vocabulary.get(id as usize);
                let text =
                    text.ok_or_else(|| ErrorKind::malformed(key, format!("{id} is not in the vocabulary")))?;
                tokens.texts.insert(role.into(), text.clone());
            }
        }
        Ok(tokens)
    }

    fn ends_with(&mut self, id: u32) {
        if !self.eos.contains(&id) {
            self.eos.push(id);
        }
    }
}

fn roles(object: &Map<String, Value>) -> Result<BTreeMap<String, String>, ErrorKind> {
    let mut texts = BTreeMap::new();
    for role in ROLES {
        let text = match object.get(role) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => Some(text.as_str()),
            Some(token) => token.get("content").and_then(Value::as_str),
        };
        let text =
            text.ok_or_else(|| ErrorKind::malformed(role, "expected a text or an object with its content"))?;
        texts.insert(role.to_owned(), text.to_owned());
    }
    Ok(texts)
}

/// Looks ids up in a tokenizer.json without building the tokenizer.
struct Ids<'a> {
    json: &'a [u8],
}

#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct WithVocabulary {
    model: Vocabulary,
}

#[derive(Deserialize)]
struct Vocabulary {
    vocab: HashMap<String, u32>,
}

impl Ids<'_> {
    fn find(&self, text: &str) -> Result<Option<u32>, ErrorKind> {
        let added: Added =
            serde_json::from_slice(self.json).map_err(|error| ErrorKind::malformed("added_tokens", error))?;
        if let Some(token) = added.added_tokens.iter().find(|token| token.content == text) {
            return Ok(Some(token.id));
        }
        // Rarely a token with a role is an ordinary one; models whose vocabulary is no map have none such.
        let ordinary: Result<WithVocabulary, _> = serde_json::from_slice(self.json);
        Ok(ordinary.ok().and_then(|tokenizer| tokenizer.model.vocab.get(text).copied()))
    }
}
