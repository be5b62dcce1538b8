//! SGLang's native `/generate`: reading and checking the request.

use messages::{
    generate::{Generate, TextOptions},
    input::Input,
    lease::ModelCard,
    submit::Sampling,
};
use serde_json::{Map, Value};

use super::{
    ask::{Ask, Form, MAX_CHOICES, MAX_PROMPTS, NativeForm, generate},
    completion::tokens,
    error::ApiError,
    fields::{Fields, wrong_type},
    sampling::{MAX_TOP_LOGPROBS, cache_salt, priority, refuse, small, stops, tuned},
    seeds::Seeds,
};

/// SGLang's default length.
const DEFAULT_MAX_NEW_TOKENS: u32 = 128;
/// No temperature is too high, but an infinite one is none.
const MAX_TEMPERATURE: f64 = 1000.0;

const REFUSED: [&str; 11] = [
    "input_embeds",
    "image_data",
    "video_data",
    "audio_data",
    "token_ids_logprob",
    "return_hidden_states",
    "lora_path",
    "session_params",
    "custom_logit_processor",
    "bootstrap_room",
    "return_routed_experts",
];
const REFUSED_SAMPLING: [&str; 7] =
    ["json_schema", "regex", "ebnf", "structural_tag", "stop_regex", "beam_width", "custom_params"];

/// # Errors
/// 400 that names the field.
pub fn read(mut fields: Fields, card: &ModelCard, seeds: &Seeds) -> Result<Ask, ApiError> {
    for name in REFUSED {
        if fields.value(name).is_some_and(|value| value != Value::Bool(false)) {
            let message = format!("'{name}' is not supported by this server.");
            return Err(ApiError::invalid(name, "unsupported_parameter", message));
        }
    }
    let (inputs, batch) = inputs(&mut fields, card)?;
    let count = inputs.len();
    let mut form = NativeForm { batch, ..NativeForm::default() };
    let stream = fields.flag("stream")?.unwrap_or(false);
    let scores = each(&mut fields, "return_logprob", count)?;
    let starts = each(&mut fields, "logprob_start_len", count)?;
    let tops = each(&mut fields, "top_logprobs_num", count)?;
    form.text_in_logprobs = fields.flag("return_text_in_logprobs")?.unwrap_or(false);
    form.ids = labels(&mut fields, count)?;
    let (priority, salt) = (priority(&mut fields)?, cache_salt(&mut fields)?);
    let salt = match (salt, fields.text("extra_key")?) {
        (Some(salt), Some(key)) => Some(format!("{salt}/{key}")),
        (salt, key) => salt.or(key),
    };
    let mut prompts = Vec::with_capacity(count);
    for (index, (input, params)) in inputs.into_iter().zip(params(&mut fields, count)?).enumerate() {
        let (mut request, no_output) = request(input, params, card, seeds)?;
        let mut logprobs = Fields::default();
        for (name, values) in
            [("return_logprob", &scores), ("logprob_start_len", &starts), ("top_logprobs_num", &tops)]
        {
            logprobs.put(name, values[index].clone());
        }
        form.no_output |= no_output;
        score(&mut request, &mut logprobs, &mut form)?;
        request.priority = priority;
        request.cache_salt.clone_from(&salt);
        prompts.push(request);
    }
    Ok(Ask { prompts, stream, form: Form::Native(form) })
}

fn score(request: &mut Generate, fields: &mut Fields, form: &mut NativeForm) -> Result<(), ApiError> {
    let wanted = fields.flag("return_logprob")?.unwrap_or(false);
    let start = fields.integer("logprob_start_len", -1..=i64::from(i32::MAX))?.unwrap_or(-1);
    let top = fields.integer("top_logprobs_num", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0);
    if wanted {
        form.logprobs = true;
        form.top_logprobs |= top > 0;
        request.sampling.logprobs = Some(u8::try_from(top).unwrap_or(0));
        request.score_prompt_from = u32::try_from(start).ok();
    }
    Ok(())
}

fn request(
    input: Input,
    mut params: Fields,
    card: &ModelCard,
    seeds: &Seeds,
) -> Result<(Generate, bool), ApiError> {
    refuse(&params, &REFUSED_SAMPLING)?;
    let mut sampling: Sampling = tuned(&mut params, card, MAX_TEMPERATURE)?;
    sampling.min_tokens = small(&mut params, "min_new_tokens")?.unwrap_or(0);
    sampling.seed = match params.integer("sampling_seed", i64::MIN..=i64::MAX)? {
        Some(seed) => seed as u64,
        None => seeds.draw(),
    };
    let max_new_tokens = small(&mut params, "max_new_tokens")?.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
    let text = TextOptions {
        stop: stops(&mut params)?,
        include_stop: params.flag("no_stop_trim")?.unwrap_or(false),
        skip_special_tokens: params.flag("skip_special_tokens")?.unwrap_or(true),
        add_special_tokens: true,
    };
    let n = params.integer("n", 1..=MAX_CHOICES)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    if sampling.min_tokens > max_new_tokens {
        let name = params.name("min_new_tokens");
        let message = format!("Invalid '{name}': more than the {max_new_tokens} tokens asked for.");
        return Err(ApiError::invalid(name, "integer_above_max_value", message));
    }
    let mut request = generate(input, n, sampling, text);
    request.max_tokens = Some(max_new_tokens.max(1));
    Ok((request, max_new_tokens == 0))
}

/// The prompts, and whether they came as a list.
fn inputs(fields: &mut Fields, card: &ModelCard) -> Result<(Vec<Input>, bool), ApiError> {
    let (text, ids) = (fields.value("text"), fields.value("input_ids"));
    let (inputs, batch, name) = match (text, ids) {
        (Some(_), Some(_)) => {
            let message = "'text' and 'input_ids' exclude each other.";
            return Err(ApiError::invalid("input_ids", "invalid_value", message));
        }
        (Some(Value::String(text)), None) => (vec![Input::Text(text)], false, "text"),
        (Some(Value::Array(items)), None) => (texts(&items)?, true, "text"),
        (Some(other), None) => return Err(wrong_type("text", "a string or an array of strings", &other)),
        (None, Some(Value::Array(items))) => match items.first() {
            Some(Value::Array(_)) => (id_lists(&items, card)?, true, "input_ids"),
            _ => (vec![tokens(&items, "input_ids", card)?], false, "input_ids"),
        },
        (None, Some(other)) => return Err(wrong_type("input_ids", "an array", &other)),
        (None, None) => return Err(ApiError::missing("text")),
    };
    if inputs.is_empty() || inputs.len() > MAX_PROMPTS {
        let message =
            format!("Invalid '{name}': expected 1 to {MAX_PROMPTS} prompts, but got {}.", inputs.len());
        return Err(ApiError::invalid(name, "invalid_value", message));
    }
    Ok((inputs, batch))
}

fn texts(items: &[Value]) -> Result<Vec<Input>, ApiError> {
    let read = |(index, item): (usize, &Value)| match item {
        Value::String(text) => Ok(Input::Text(text.clone())),
        other => Err(wrong_type(&format!("text[{index}]"), "a string", other)),
    };
    items.iter().enumerate().map(read).collect()
}

fn id_lists(items: &[Value], card: &ModelCard) -> Result<Vec<Input>, ApiError> {
    let read = |(index, item): (usize, &Value)| match item {
        Value::Array(ids) => tokens(ids, &format!("input_ids[{index}]"), card),
        other => Err(wrong_type(&format!("input_ids[{index}]"), "an array of token ids", other)),
    };
    items.iter().enumerate().map(read).collect()
}

/// A field's value for each prompt: one for all, or a list.
fn each(fields: &mut Fields, name: &str, count: usize) -> Result<Vec<Value>, ApiError> {
    match fields.value(name) {
        None => Ok(vec![Value::Null; count]),
        Some(Value::Array(items)) if items.len() == count => Ok(items),
        Some(Value::Array(items)) => {
            let message = format!("Invalid '{name}': {} values for {count} prompts.", items.len());
            Err(ApiError::invalid(name, "invalid_value", message))
        }
        Some(value) => Ok(vec![value; count]),
    }
}

fn params(fields: &mut Fields, count: usize) -> Result<Vec<Fields>, ApiError> {
    let name = "sampling_params";
    let read = |value: Value| match value {
        Value::Null => Ok(Fields::of(Map::new(), name)),
        Value::Object(map) => Ok(Fields::of(map, name)),
        other => Err(wrong_type(name, "an object", &other)),
    };
    each(fields, name, count)?.into_iter().map(read).collect()
}

fn labels(fields: &mut Fields, count: usize) -> Result<Vec<Option<String>>, ApiError> {
    let read = |value: Value| match value {
        Value::Null => Ok(None),
        Value::String(id) => Ok(Some(id)),
        other => Err(wrong_type("rid", "a string", &other)),
    };
    each(fields, "rid", count)?.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests;
