//! `/v1/completions`: reading and checking the request.

use messages::{TokenIds, input::Input, lease::ModelCard};
use serde_json::Value;

use super::{
    ask::{Ask, CompletionForm, Form, MAX_PROMPTS, generate},
    chat::at_least,
    error::ApiError,
    fields::{Fields, token_ids, wrong_type},
    sampling::{Common, MAX_TOP_LOGPROBS, small},
    seeds::Seeds,
};

/// OpenAI's default length of a text completion.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// # Errors
/// 400 that names the field.
pub fn read(mut fields: Fields, card: &ModelCard, seeds: &Seeds) -> Result<Ask, ApiError> {
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let message = "Invalid 'suffix': insertion is not supported by this server.";
        return Err(ApiError::unsupported("suffix", message));
    }
    let common = Common::read(&mut fields, card, seeds)?;
    let mut sampling = common.sampling;
    if fields.integer("best_of", 1..=i64::MAX)?.is_some_and(|best_of| best_of != i64::from(common.n)) {
        let message = "Invalid 'best_of': choosing among more answers than 'n' is not supported.";
        return Err(ApiError::unsupported("best_of", message));
    }
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?.and_then(|k| u8::try_from(k).ok());
    sampling.logprobs = logprobs;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let wanted = small(&mut fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS);
    let no_output = wanted == 0;
    if no_output && !echo {
        let message = "Invalid 'max_tokens': 0 is only allowed together with 'echo'.";
        return Err(ApiError::invalid("max_tokens", "integer_below_min_value", message));
    }
    at_least(sampling.min_tokens, Some(wanted))?;
    let inputs = inputs(&mut fields, card)?;
    let prompts = inputs.into_iter().map(|input| {
        let mut request = generate(input, common.n, sampling.clone(), common.text.clone());
        request.max_tokens = Some(wanted.max(1));
        request.score_prompt_from = (echo && logprobs.is_some()).then_some(0);
        request.priority = common.priority;
        request.cache_salt.clone_from(&common.cache_salt);
        request
    });
    let form = CompletionForm { include_usage: common.include_usage, logprobs, echo, no_output };
    Ok(Ask { prompts: prompts.collect(), stream: common.stream, form: Form::Completion(form) })
}

/// A string, a list of strings, token ids, or a list of token ids.
fn inputs(fields: &mut Fields, card: &ModelCard) -> Result<Vec<Input>, ApiError> {
    let items = match fields.value("prompt") {
        None => return Err(ApiError::missing("prompt")),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(other) => {
            return Err(fields.wrong(
                "prompt",
                "a string, an array of strings or arrays of token ids",
                &other,
            ));
        }
    };
    let inputs = match items.first() {
        None => {
            let message = "Invalid 'prompt': empty array. Expected an array with minimum length 1.";
            return Err(ApiError::invalid("prompt", "empty_array", message));
        }
        Some(Value::Number(_)) => vec![tokens(&items, "prompt", card)?],
        Some(_) => {
            let read = |(index, item): (usize, &Value)| {
                let name = format!("prompt[{index}]");
                match item {
                    Value::String(text) => Ok(Input::Text(text.clone())),
                    Value::Array(ids) => tokens(ids, &name, card),
                    other => Err(wrong_type(&name, "a string or an array of token ids", other)),
                }
            };
            items.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?
        }
    };
    if inputs.len() > MAX_PROMPTS {
        let message =
            format!("Invalid 'prompt': expected at most {MAX_PROMPTS} prompts, but got {}.", inputs.len());
        return Err(ApiError::invalid("prompt", "array_above_max_length", message));
    }
    Ok(inputs)
}

/// A prompt of token ids.
pub fn tokens(items: &[Value], name: &str, card: &ModelCard) -> Result<Input, ApiError> {
    if items.is_empty() {
        let message = format!("Invalid '{name}': empty array. Expected at least one token id.");
        return Err(ApiError::invalid(name, "empty_array", message));
    }
    let ids = token_ids(items, name, card.vocab_size)?;
    Ok(Input::Tokens(TokenIds::from(ids.as_slice())))
}

#[cfg(test)]
mod tests;
