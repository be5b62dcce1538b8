//! Choosing the model a request names, and describing models.

use std::sync::Arc;

use messages::lease::ModelCard;
use serde_json::{Value, json};

use super::{error::ApiError, fields::Fields};
use crate::road::Road;

/// The model a request must name.
///
/// # Errors
/// 400 without a name, 404 for one that is not served.
pub fn named(fields: &mut Fields, road: &dyn Road) -> Result<Arc<ModelCard>, ApiError> {
    let name = fields.text("model")?.ok_or_else(|| ApiError::missing("model"))?;
    road.model(&name).ok_or_else(|| ApiError::model_not_found(&name))
}

/// The model a request may name: the only one needs no name.
///
/// # Errors
/// 400 without a name where several are served, 404 for one that is not, 503 if none is.
pub fn named_or_only(fields: &mut Fields, road: &dyn Road) -> Result<Arc<ModelCard>, ApiError> {
    if fields.has("model") {
        return named(fields, road);
    }
    only(road)
}

/// The only model served.
///
/// # Errors
/// 503 if there is none, 400 if there are several.
pub fn only(road: &dyn Road) -> Result<Arc<ModelCard>, ApiError> {
    let models = road.models();
    match models.as_slice() {
        [card] => Ok(card.clone()),
        [] => Err(ApiError::not_ready(&["no model is served".to_owned()])),
        _ => {
            let names: Vec<&str> = models.iter().map(|card| card.name.as_str()).collect();
            let message =
                format!("Several models are served, name one in 'model': '{}'.", names.join("', '"));
            Err(ApiError::invalid("model", "missing_required_parameter", message))
        }
    }
}

/// A model as OpenAI lists it.
pub fn describe(card: &ModelCard) -> Value {
    json!({
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "stator",
        "root": card.path,
        "parent": null,
        "max_model_len": card.context_length,
    })
}

/// A model as SGLang's `/model_info` shows it.
pub fn info(card: &ModelCard) -> Value {
    json!({
        "model_path": card.path,
        "served_model_name": card.name,
        "tokenizer_path": card.path,
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": card.revision,
        "model_type": card.architecture,
        "context_length": card.context_length,
        "vocab_size": card.vocab_size,
        "has_chat_template": card.has_chat_template,
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "eos_token_ids": card.eos_ids,
    })
}
