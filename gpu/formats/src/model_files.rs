use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    Architecture, ChatTemplates, DecoderConfig, Error, GenerationDefaults, Gguf, Location, Revision,
    Safetensors, SpecialTokens, error::InFile, locate, location::CONFIG_FILE, map::read_small,
    revision::Hasher, tokenizer,
};

const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Everything about a model but its weights, read from a Hugging Face folder or a GGUF file.
#[derive(Debug)]
pub struct ModelFiles {
    pub location: Location,
    pub config: DecoderConfig,
    /// A tokenizer.json: the folder's, or one built from GGUF metadata.
    pub tokenizer_json: Vec<u8>,
    pub chat_templates: ChatTemplates,
    pub special_tokens: SpecialTokens,
    pub generation: GenerationDefaults,
    /// Bytes of all tensors in the files.
    pub weight_bytes: u64,
    pub revision: Revision,
}

/// What other services need to know of a model; published beside an instance's lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    pub revision: Revision,
    pub architecture: Architecture,
    pub vocab_size: u32,
    /// Longest sequence the model was made for, in tokens; an engine may serve less.
    pub context_length: u32,
    pub special_tokens: SpecialTokens,
    pub generation: GenerationDefaults,
    pub has_chat_template: bool,
    pub weight_bytes: u64,
}

impl ModelFiles {
    /// Opens a Hugging Face folder, a GGUF file, or a folder with just one GGUF file.
    ///
    /// # Errors
    /// If a part is missing or malformed: says which file, which field, and what to do.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match locate(path)? {
            Location::Folder(folder) => Self::from_folder(&folder),
            Location::Gguf(file) => Self::from_gguf(&file),
        }
    }

    fn from_folder(folder: &Path) -> Result<Self, Error> {
        let config_file = folder.join(CONFIG_FILE);
        let config = DecoderConfig::from_config_json(&config_file)?;
        let tokenizer_json = tokenizer::from_folder(folder)?;
        let chat_templates = ChatTemplates::from_folder(folder)?;
        let (generation, mut eos) = GenerationDefaults::from_folder(folder)?;
        eos.extend(&config.eos);
        let special_tokens = SpecialTokens::from_folder(folder, config.bos, eos, &tokenizer_json)?;
        let weights = Safetensors::open(folder)?;

        let mut hasher = Hasher::new();
        hasher.part(&read_small(&config_file, MAX_CONFIG_BYTES)?);
        hash_text(&mut hasher, &tokenizer_json, &chat_templates, &special_tokens);
        hasher.weights(weights.entries());
        Ok(Self {
            location: Location::Folder(folder.to_owned()),
            config,
            tokenizer_json,
            chat_templates,
            special_tokens,
            generation,
            weight_bytes: weights.entries().map(|(.., data)| data.len() as u64).sum(),
            revision: hasher.finish(),
        })
    }

    fn from_gguf(path: &Path) -> Result<Self, Error> {
        let file = Gguf::open(path)?;
        let metadata = file.metadata();
        let config = DecoderConfig::from_gguf(&file)?;
        let tokenizer_json = file.tokenizer_json()?;
        let chat_templates = ChatTemplates::from_gguf(metadata).in_file(path)?;
        let special_tokens = SpecialTokens::from_gguf(metadata, &config.eos).in_file(path)?;
        let generation = GenerationDefaults::from_gguf(metadata).in_file(path)?;

        let mut hasher = Hasher::new();
        hasher.part(file.head());
        hash_text(&mut hasher, &tokenizer_json, &chat_templates, &special_tokens);
        hasher.weights(file.entries());
        Ok(Self {
            config,
            tokenizer_json,
            chat_templates,
            special_tokens,
            generation,
            weight_bytes: file.entries().map(|(.., data)| data.len() as u64).sum(),
            revision: hasher.finish(),
            location: Location::Gguf(path.to_owned()),
        })
    }

    /// Builds the tokenizer; takes a moment for a large vocabulary.
    ///
    /// # Errors
    /// If tokenizer.json is malformed or has an id beyond the model's vocabulary.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer, Error> {
        let file = match &self.location {
            Location::Folder(folder) => folder.join(tokenizer::TOKENIZER_FILE),
            Location::Gguf(file) => file.clone(),
        };
        tokenizer::build(&self.tokenizer_json, self.config.decoder.vocab_size).in_file(&file)
    }

    pub fn card(&self) -> ModelCard {
        ModelCard {
            revision: self.revision.clone(),
            architecture: self.config.architecture,
            vocab_size: self.config.decoder.vocab_size,
            context_length: self.config.decoder.context_length,
            special_tokens: self.special_tokens.clone(),
            generation: self.generation.clone(),
            has_chat_template: self.chat_templates.default.is_some(),
            weight_bytes: self.weight_bytes,
        }
    }
}

fn hash_text(hasher: &mut Hasher, tokenizer: &[u8], templates: &ChatTemplates, special: &SpecialTokens) {
    hasher.part(tokenizer);
    hasher.part(templates.default.as_deref().unwrap_or_default().as_bytes());
    for (name, text) in &templates.named {
        hasher.part(name.as_bytes());
        hasher.part(text.as_bytes());
    }
    let ends: Vec<u8> = special.eos.iter().flat_map(|id| id.to_le_bytes()).collect();
    hasher.part(&ends);
}

#[cfg(test)]
mod tests;
