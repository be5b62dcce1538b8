//! The sampling fields that chat and text completions share.

use messages::{generate::TextOptions, lease::ModelCard, submit::Sampling};
use serde_json::Value;

use super::{ask::MAX_CHOICES, error::ApiError, fields::Fields, seeds::Seeds};

/// Stop strings of one request.
pub const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
pub const MAX_TOP_LOGPROBS: i64 = Sampling::MAX_TOP_LOGPROBS as i64;

/// The fields common to both OpenAI routes.
#[derive(Debug)]
pub struct Common {
    pub sampling: Sampling,
    pub text: TextOptions,
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    pub priority: i32,
    pub cache_salt: Option<String>,
}

/// Fields whose silent neglect would change the answer.
const REFUSED: [&str; 13] = [
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "regex",
    "ebnf",
    "logits_processors",
    "custom_logit_processor",
    "use_beam_search",
    "lora_path",
    "prompt_embeds",
];

impl Common {
    /// # Errors
    /// 400 that names the field.
    pub fn read(fields: &mut Fields, card: &ModelCard, seeds: &Seeds) -> Result<Self, ApiError> {
        refuse(fields, &REFUSED)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            Some(_) if !stream => {
                let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
                return Err(ApiError::invalid("stream_options", "invalid_value", message));
            }
            Some(mut options) => options.flag("include_usage")?.unwrap_or(false),
            None => false,
        };
        Ok(Self {
            sampling: sampling(fields, card, seeds)?,
            text: text_options(fields)?,
            n: u32::try_from(fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1)).unwrap_or(1),
            stream,
            include_usage,
            priority: priority(fields)?,
            cache_salt: cache_salt(fields)?,
        })
    }
}

/// 400 if any of `names` is set to something.
pub fn refuse(fields: &Fields, names: &[&str]) -> Result<(), ApiError> {
    match names.iter().find(|name| fields.has(name)) {
        Some(name) => {
            let name = fields.name(name);
            let message = format!("'{name}' is not supported by this server.");
            Err(ApiError::invalid(name, "unsupported_parameter", message))
        }
        None => Ok(()),
    }
}

pub fn priority(fields: &mut Fields) -> Result<i32, ApiError> {
    let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
    Ok(fields.integer("priority", range)?.and_then(|n| i32::try_from(n).ok()).unwrap_or(0))
}

pub fn cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.text("cache_salt")?;
    match &salt {
        Some(text) if text.is_empty() || text.len() > 256 => {
            let message = "Invalid 'cache_salt': expected 1 to 256 bytes.";
            Err(ApiError::invalid(fields.name("cache_salt"), "invalid_value", message))
        }
        _ => Ok(salt),
    }
}

fn sampling(fields: &mut Fields, card: &ModelCard, seeds: &Seeds) -> Result<Sampling, ApiError> {
    let mut sampling = tuned(fields, card, 2.0)?;
    sampling.seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
        Some(seed) => seed as u64,
        None => seeds.draw(),
    };
    sampling.min_tokens = small(fields, "min_tokens")?.unwrap_or(0);
    Ok(sampling)
}

/// The fields that OpenAI's routes and the native one call by the same name.
pub fn tuned(fields: &mut Fields, card: &ModelCard, max_temperature: f64) -> Result<Sampling, ApiError> {
    let defaults = &card.defaults;
    let top_k = match fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        Some(k) => u32::try_from(k).unwrap_or(0),
        None => defaults.top_k.unwrap_or(0),
    };
    // SGLang's word for "all".
    let top_k = if top_k >= 1 << 30 { 0 } else { top_k };
    let repetition_penalty = fields.decimal("repetition_penalty", 0.0..=2.0)?;
    if repetition_penalty == Some(0.0) {
        let name = fields.name("repetition_penalty");
        let message = format!("Invalid '{name}': expected a value above 0.");
        return Err(ApiError::invalid(name, "decimal_below_min_value", message));
    }
    Ok(Sampling {
        temperature: fields
            .decimal("temperature", 0.0..=max_temperature)?
            .or(defaults.temperature)
            .unwrap_or(1.0),
        // Nothing is as narrow as the most likely token alone.
        top_p: fields.decimal("top_p", 0.0..=1.0)?.or(defaults.top_p).unwrap_or(1.0).max(f32::MIN_POSITIVE),
        top_k,
        min_p: fields.decimal("min_p", 0.0..=1.0)?.or(defaults.min_p).unwrap_or(0.0),
        presence_penalty: fields.decimal("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.decimal("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        repetition_penalty: repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        logit_bias: logit_bias(fields, card)?,
        stop_ids: stop_ids(fields, card)?,
        ..Sampling::default()
    })
}

/// A count that may be 0.
pub fn small(fields: &mut Fields, name: &str) -> Result<Option<u32>, ApiError> {
    Ok(fields.integer(name, 0..=i64::from(i32::MAX))?.and_then(|n| u32::try_from(n).ok()))
}

fn logit_bias(fields: &mut Fields, card: &ModelCard) -> Result<Vec<(u32, f32)>, ApiError> {
    const MOST: usize = Sampling::MAX_BIASES;
    let name = fields.name("logit_bias");
    let map = match fields.value("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("logit_bias", "an object", &other)),
    };
    if map.len() > MOST {
        let message = format!("Invalid '{name}': expected at most {MOST} tokens, but got {}.", map.len());
        return Err(ApiError::invalid(name, "object_above_max_properties", message));
    }
    let bad = |message: String| Err(ApiError::invalid(name.clone(), "invalid_value", message));
    let mut biases = Vec::with_capacity(map.len());
    for (token, bias) in &map {
        let Some(id) = token.parse::<u32>().ok().filter(|id| *id < card.vocab_size) else {
            let size = card.vocab_size;
            return bad(format!("Invalid '{name}': '{token}' is no token id below {size}."));
        };
        match bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)) {
            Some(bias) => biases.push((id, bias as f32)),
            None => return bad(format!("Invalid '{name}': the bias of token {id} must be -100 to 100.")),
        }
    }
    Ok(biases)
}

fn stop_ids(fields: &mut Fields, card: &ModelCard) -> Result<Vec<u32>, ApiError> {
    const MOST: usize = Sampling::MAX_STOP_IDS;
    let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
    let mut ids = if ignore_eos { Vec::new() } else { card.eos_ids.clone() };
    let own = fields.token_ids("stop_token_ids", card.vocab_size)?.unwrap_or_default();
    if own.len() > MOST {
        let name = fields.name("stop_token_ids");
        let message = format!("Invalid '{name}': expected at most {MOST} ids, but got {}.", own.len());
        return Err(ApiError::invalid(name, "array_above_max_length", message));
    }
    for id in own {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn text_options(fields: &mut Fields) -> Result<TextOptions, ApiError> {
    Ok(TextOptions {
        stop: stops(fields)?,
        include_stop: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
        skip_special_tokens: fields.flag("skip_special_tokens")?.unwrap_or(true),
        add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(true),
    })
}

/// Stop strings: one or a list.
pub fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let name = fields.name("stop");
    let stops = fields.texts("stop")?.unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let found = stops.len();
        let message = format!(
            "Invalid '{name}': array too long. Expected an array with maximum length {MAX_STOPS}, but got {found}."
        );
        return Err(ApiError::invalid(name, "array_above_max_length", message));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        let message = format!("Invalid '{name}': stop strings have 1 to {MAX_STOP_BYTES} bytes.");
        return Err(ApiError::invalid(name, "invalid_value", message));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests;
