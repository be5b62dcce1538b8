use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    Metadata,
    config::Fields,
    error::{Error, ErrorKind, InFile},
    json::{self, GENERATION_CONFIG_FILE},
};

/// Sampling settings that a model's makers recommend; a request overrides them. `None`: they recommend nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// `false`: the makers decode greedily.
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads generation_config.json; also its end-of-sequence ids.
    pub(crate) fn from_folder(folder: &Path) -> Result<(Self, Vec<u32>), Error> {
        let file = folder.join(GENERATION_CONFIG_FILE);
        match json::read_object(&file)? {
            Some(object) => Self::from_json(Fields::new(&object)).in_file(&file),
            None => Ok(Default::default()),
        }
    }

    fn from_json(fields: Fields<'_>) -> Result<(Self, Vec<u32>), ErrorKind> {
        let defaults = Self {
            do_sample: fields.bool("do_sample")?,
            temperature: fields.f32("temperature")?,
            top_p: fields.f32("top_p")?,
            top_k: fields.u32("top_k")?,
            min_p: fields.f32("min_p")?,
            repetition_penalty: fields.f32("repetition_penalty")?,
        };
        defaults.check(|name| name.to_owned())?;
        Ok((defaults, fields.ids("eos_token_id")?))
    }

    pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Self, ErrorKind> {
        let key = |name: &str| format!("general.sampling.{name}");
        let defaults = Self {
            do_sample: None,
            temperature: metadata.f32(&key("temp"))?,
            top_p: metadata.f32(&key("top_p"))?,
            top_k: metadata.u32(&key("top_k"))?,
            min_p: metadata.f32(&key("min_p"))?,
            repetition_penalty: metadata.f32(&key("penalty_repeat"))?,
        };
        defaults.check(key)?;
        Ok(defaults)
    }

    fn check(&self, name: impl Fn(&str) -> String) -> Result<(), ErrorKind> {
        let ranges = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE..=100.0),
        ];
        for (field, value, range) in ranges {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let reason = format!("{value} is not within {} to {}", range.start(), range.end());
                return Err(ErrorKind::malformed(name(field), reason));
            }
        }
        Ok(())
    }
}
