use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::{
    Metadata,
    error::{Error, ErrorKind, InFile},
    json::{self, TOKENIZER_CONFIG_FILE},
    map::read_small,
};

const JINJA_FILE: &str = "chat_template.jinja";
const JSON_FILE: &str = "chat_template.json";
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
const DEFAULT: &str = "default";

/// The chat templates of a model, as Jinja text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The one to use unless a request names another; base models have none.
    pub default: Option<String>,
    /// Others by name, such as `tool_use`.
    pub named: BTreeMap<String, String>,
}

impl ChatTemplates {
    /// Reads a model folder: `chat_template.jinja`, else `chat_template` of tokenizer_config.json (a text or a list
    /// of named ones), else `chat_template.json`.
    pub(crate) fn from_folder(folder: &Path) -> Result<Self, Error> {
        let jinja = folder.join(JINJA_FILE);
        if jinja.is_file() {
            let text = String::from_utf8(read_small(&jinja, MAX_TEMPLATE_BYTES)?);
            let text = text.map_err(|error| ErrorKind::malformed("text", error)).in_file(&jinja)?;
            return Ok(Self { default: Some(text), named: BTreeMap::new() });
        }
        for name in [TOKENIZER_CONFIG_FILE, JSON_FILE] {
            let file = folder.join(name);
            let templates = match json::read_object(&file)? {
                Some(object) => Self::from_field(object.get("chat_template")).in_file(&file)?,
                None => Self::default(),
            };
            if templates != Self::default() {
                return Ok(templates);
            }
        }
        Ok(Self::default())
    }

    fn from_field(field: Option<&Value>) -> Result<Self, ErrorKind> {
        const FIELD: &str = "chat_template";
        let wrong = || ErrorKind::malformed(FIELD, "expected a text or a list of {name, template}");
        let mut templates = Self::default();
        match field {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => templates.default = Some(text.clone()),
            Some(Value::Array(list)) => {
                for entry in list {
                    let part = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                    templates.add(part("name").ok_or_else(wrong)?, part("template").ok_or_else(wrong)?);
                }
            }
            Some(_) => return Err(wrong()),
        }
        Ok(templates)
    }

    pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Self, ErrorKind> {
        const KEY: &str = "tokenizer.chat_template";
        let mut templates =
            Self { default: metadata.string(KEY)?.map(str::to_owned), named: BTreeMap::new() };
        for name in metadata.strings("tokenizer.chat_templates")?.unwrap_or_default() {
            if let Some(text) = metadata.string(&format!("{KEY}.{name}"))? {
                templates.add(name.clone(), text.to_owned());
            }
        }
        Ok(templates)
    }

    fn add(&mut self, name: String, text: String) {
        if name == DEFAULT {
            self.default = Some(text);
        } else {
            self.named.insert(name, text);
        }
    }
}
