//! A model as far as its text goes: files read, template compiled, vocabulary laid out.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context;
use catalog::Naming;
use messages::{
    Fault, FaultCode, TokenIds,
    generate::{Generate, TextOptions},
    input::Input,
    lease::ModelCard,
    text::{Answer, Detokenize, Detokenized, Tokenize, Tokenized},
};
use tokenizers::Tokenizer;

use crate::{
    decode::{Pieces, TextStream},
    encode::{Encoder, Words},
    settings::TokenizerSettings,
    template::{Conversation, Template, local_time},
};

/// Everything that turns text to tokens and back. Shared by all threads.
pub struct Model {
    pub card: ModelCard,
    pub pieces: Pieces,
    template: Option<Template>,
    encoder: Encoder,
}

/// A prompt in tokens.
#[derive(Debug, Default)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// How many of them were known from earlier prompts.
    pub cached: usize,
}

impl Model {
    /// Reads a model's files; never its weights.
    ///
    /// # Errors
    /// If a file is missing or malformed: says which, and what to do.
    pub fn load(settings: &TokenizerSettings) -> anyhow::Result<Self> {
        let path = settings
            .model_path
            .as_deref()
            .context("--model-path is needed: a Hugging Face folder or GGUF file")?;
        let naming = Naming {
            served_name: settings.served_model_name.clone(),
            context_length: settings.context_length,
        };
        let (files, card) = catalog::open(path, &naming)?;
        let template = match &settings.chat_template {
            Some(file) => Some(
                std::fs::read_to_string(file)
                    .with_context(|| format!("--chat-template {}", file.display()))?,
            ),
            None => files.chat_templates.default.clone(),
        };
        let tokenizer = files.tokenizer()?;
        Self::build(
            card,
            tokenizer,
            template.as_deref(),
            files.special_tokens.texts,
            settings.prompt_cache_mib << 20,
        )
    }

    /// Makes a model of its parts.
    ///
    /// # Errors
    /// If the chat template does not parse.
    pub fn build(
        mut card: ModelCard,
        mut tokenizer: Tokenizer,
        template: Option<&str>,
        special_tokens: BTreeMap<String, String>,
        cache_bytes: usize,
    ) -> anyhow::Result<Self> {
        // A prompt is never cut or filled up behind the client's back.
        tokenizer.with_truncation(None).map_err(|error| anyhow::anyhow!("tokenizer: {error}"))?;
        tokenizer.with_padding(None);
        let template =
            template.map(|source| Template::compile(source, special_tokens, local_time)).transpose()?;
        card.has_chat_template = template.is_some();
        let tokenizer = Arc::new(tokenizer);
        let encoder = Encoder::new(tokenizer.clone(), cache_bytes);
        Ok(Self { card, pieces: Pieces::new(tokenizer), template, encoder })
    }

    /// Whether prompts take the encoder's fast path.
    pub fn encodes_fast(&self) -> bool {
        self.encoder.is_fast()
    }

    /// Renders and encodes what a client sent.
    ///
    /// # Errors
    /// An invalid-request fault with what is wrong.
    pub fn prompt(
        &self,
        input: &Input,
        add_special_tokens: bool,
        words: &mut Words,
    ) -> Result<Prompt, Fault> {
        let (text, add_special_tokens, field) = match input {
            Input::Tokens(ids) => return self.given(ids),
            Input::Text(text) => (std::borrow::Cow::Borrowed(text.as_str()), add_special_tokens, "prompt"),
            Input::Chat(chat) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    Fault::invalid("messages", format!("the model '{}' has no chat template", self.card.name))
                })?;
                (template.render(&Conversation::read(chat)?)?.into(), false, "messages")
            }
        };
        let encoded = self.encoder.encode(&text, add_special_tokens, words);
        let encoded = encoded.map_err(|error| Fault::invalid(field, error.to_string()))?;
        Ok(Prompt { ids: encoded.ids, cached: encoded.cached })
    }

    fn given(&self, ids: &TokenIds) -> Result<Prompt, Fault> {
        let size = self.card.vocab_size;
        match ids.iter().find(|id| *id >= size) {
            Some(id) => {
                let text = format!("token id {id} is not in the model's vocabulary of {size} tokens");
                Err(Fault::invalid("prompt", text))
            }
            None => Ok(Prompt { ids: ids.to_vec(), cached: 0 }),
        }
    }

    /// Output tokens that a request may have per choice: what it names, or else what the context leaves.
    ///
    /// # Errors
    /// If the prompt is empty, or it does not fit the context together with the output asked for.
    pub fn room(&self, request: &Generate, prompt_tokens: usize) -> Result<u32, Fault> {
        let context = self.card.context_length;
        let field = if matches!(request.input, Input::Chat(_)) { "messages" } else { "prompt" };
        if prompt_tokens == 0 {
            return Err(Fault::invalid(field, "the prompt has no tokens"));
        }
        let prompt = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        let left = context.saturating_sub(prompt);
        let wanted = request.max_tokens.unwrap_or(left.max(1));
        if prompt <= context && wanted <= left {
            return Ok(wanted);
        }
        let text = match request.max_tokens {
            Some(output) => format!(
                "This model's maximum context length is {context} tokens. However, you requested {} tokens \
                 ({prompt} in the {field}, {output} in the completion). Please reduce the length of the {field} \
                 or completion.",
                u64::from(prompt) + u64::from(output)
            ),
            None => format!(
                "This model's maximum context length is {context} tokens. However, your {field} resulted in \
                 {prompt} tokens. Please reduce the length of the {field}."
            ),
        };
        Err(Fault { param: Some(field.to_owned()), ..Fault::new(FaultCode::ContextLengthExceeded, text) })
    }

    /// Whether a prompt shows no text, so that what follows it begins one.
    pub fn shows_nothing(&self, prompt: &TokenIds, options: &TextOptions) -> bool {
        options.skip_special_tokens && prompt.iter().all(|id| self.pieces.is_special(id))
    }

    pub fn tokenize(&self, request: &Tokenize, words: &mut Words) -> Answer {
        match self.prompt(&request.input, request.add_special_tokens, words) {
            Ok(Prompt { ids, .. }) => {
                let piece = |id: &u32| String::from_utf8_lossy(self.pieces.bytes(*id)).into_owned();
                let pieces = ids.iter().map(piece).collect();
                let context_length = self.card.context_length;
                Answer::Tokenized(Tokenized { ids: ids.as_slice().into(), pieces, context_length })
            }
            Err(fault) => Answer::Failed(fault),
        }
    }

    pub fn detokenize(&self, request: &Detokenize) -> Answer {
        match self.given(&request.ids) {
            Ok(_) => {
                let skip = request.skip_special_tokens;
                let text = TextStream::decode_all(&self.pieces, request.ids.iter(), skip);
                Answer::Detokenized(Detokenized { text })
            }
            Err(fault) => Answer::Failed(Fault { param: Some("tokens".to_owned()), ..fault }),
        }
    }
}

#[cfg(test)]
mod tests;
