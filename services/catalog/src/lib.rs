//! What a model on disk is called on the bus: the card that its tokenizers and engines publish with their leases.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use formats::ModelFiles;
use messages::lease::{GenerationDefaults, ModelCard};

/// What a service may say about a model beside its files.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// The name that clients ask for; default: that of the folder or file.
    pub served_name: Option<String>,
    /// A bound below what the model was made for.
    pub context_length: Option<u32>,
}

/// Opens a model and makes its card. All services of one model must be given the same naming.
///
/// # Errors
/// If the files are missing or malformed, or the context asked for is longer than the model's.
pub fn open(path: &Path, naming: &Naming) -> anyhow::Result<(ModelFiles, ModelCard)> {
    let files = ModelFiles::open(path).with_context(|| format!("model {}", path.display()))?;
    let made_for = files.config.decoder.context_length;
    let context_length = naming.context_length.unwrap_or(made_for);
    anyhow::ensure!(
        (1..=made_for).contains(&context_length),
        "--context-length {context_length} is not within 1 to {made_for}, what the model was made for"
    );
    let generation = &files.generation;
    let card = ModelCard {
        name: naming.served_name.clone().unwrap_or_else(|| name_of(path)),
        revision: files.revision.as_str().to_owned(),
        path: path.display().to_string(),
        context_length,
        vocab_size: files.config.decoder.vocab_size,
        architecture: files.config.architecture.name().to_owned(),
        has_chat_template: files.chat_templates.default.is_some(),
        eos_ids: files.special_tokens.eos.clone(),
        defaults: GenerationDefaults {
            temperature: generation.temperature,
            top_p: generation.top_p,
            top_k: generation.top_k,
            min_p: generation.min_p,
            repetition_penalty: generation.repetition_penalty,
        },
        created: modified(path),
    };
    Ok((files, card))
}

/// The last part of the path, without `.gguf`.
fn name_of(path: &Path) -> String {
    let last = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
}

/// Unix seconds of the last change of the file or folder; 0 if that is not known.
fn modified(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
