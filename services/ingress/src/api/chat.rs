//! `/v1/chat/completions`: reading and checking the request.

use messages::{
    input::{Chat, Input, Json},
    lease::ModelCard,
};
use serde_json::{Map, Value};

use super::{
    ask::{Ask, ChatForm, Form, generate},
    error::ApiError,
    fields::{Fields, wrong_type},
    sampling::{Common, MAX_TOP_LOGPROBS, refuse},
    seeds::Seeds,
};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
const REFUSED: [&str; 4] = ["functions", "web_search_options", "audio", "documents"];

/// # Errors
/// 400 that names the field.
pub fn read(mut fields: Fields, card: &ModelCard, seeds: &Seeds) -> Result<Ask, ApiError> {
    refuse(&fields, &REFUSED)?;
    only_text(&mut fields)?;
    let common = Common::read(&mut fields, card, seeds)?;
    let mut sampling = common.sampling;
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match top {
        Some(_) if !logprobs => {
            let message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.";
            return Err(ApiError::invalid("top_logprobs", "invalid_value", message));
        }
        _ if logprobs => sampling.logprobs = Some(top.and_then(|k| u8::try_from(k).ok()).unwrap_or(0)),
        _ => {}
    }
    let newer = fields.integer("max_completion_tokens", 1..=i64::from(i32::MAX))?;
    let older = fields.integer("max_tokens", 1..=i64::from(i32::MAX))?;
    let max_tokens = newer.or(older).and_then(|n| u32::try_from(n).ok());
    at_least(sampling.min_tokens, max_tokens)?;
    let mut request =
        generate(Input::Chat(conversation(&mut fields, card)?), common.n, sampling, common.text);
    request.max_tokens = max_tokens;
    request.priority = common.priority;
    request.cache_salt = common.cache_salt;
    let form = Form::Chat(ChatForm { include_usage: common.include_usage, logprobs });
    Ok(Ask { prompts: vec![request], stream: common.stream, form })
}

/// `min_tokens` must leave room.
pub fn at_least(min_tokens: u32, max_tokens: Option<u32>) -> Result<(), ApiError> {
    match max_tokens {
        Some(max) if min_tokens > max => {
            let message =
                format!("Invalid 'min_tokens': {min_tokens} is more than the {max} tokens asked for.");
            Err(ApiError::invalid("min_tokens", "integer_above_max_value", message))
        }
        _ => Ok(()),
    }
}

/// The conversation that `/v1/chat/completions` and `/tokenize` render.
pub fn conversation(fields: &mut Fields, card: &ModelCard) -> Result<Chat, ApiError> {
    let messages = fields.array("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    check_messages(&messages)?;
    if !card.has_chat_template {
        let message = format!("The model '{}' has no chat template: use /v1/completions.", card.name);
        return Err(ApiError::unsupported("messages", message));
    }
    let continues = fields.flag("continue_final_message")?.unwrap_or(false);
    let prompts = fields.flag("add_generation_prompt")?;
    if continues && prompts == Some(true) {
        let message = "'continue_final_message' and 'add_generation_prompt' exclude each other.";
        return Err(ApiError::invalid("continue_final_message", "invalid_value", message));
    }
    Ok(Chat {
        messages: Json::of(&messages),
        tools: tools(fields)?,
        template_kwargs: template_kwargs(fields)?,
        add_generation_prompt: prompts.unwrap_or(!continues),
        continue_final_message: continues,
    })
}

fn check_messages(messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        let message = "Invalid 'messages': empty array. Expected an array with minimum length 1.";
        return Err(ApiError::invalid("messages", "empty_array", message));
    }
    for (index, message) in messages.iter().enumerate() {
        let name = format!("messages[{index}]");
        match message {
            Value::Object(message) => check_message(&name, message)?,
            other => return Err(wrong_type(&name, "an object", other)),
        }
    }
    Ok(())
}

fn check_message(name: &str, message: &Map<String, Value>) -> Result<(), ApiError> {
    let role = match message.get("role") {
        Some(Value::String(role)) => role.as_str(),
        None | Some(Value::Null) => return Err(ApiError::missing(&format!("{name}.role"))),
        Some(other) => return Err(wrong_type(&format!("{name}.role"), "a string", other)),
    };
    if !ROLES.contains(&role) {
        let place = format!("{name}.role");
        let message = format!("Invalid value: '{role}'. Supported values are: '{}'.", ROLES.join("', '"));
        return Err(ApiError::invalid(place, "invalid_value", message));
    }
    let calls = match message.get("tool_calls") {
        None | Some(Value::Null) => false,
        Some(Value::Array(calls)) => !calls.is_empty(),
        Some(other) => return Err(wrong_type(&format!("{name}.tool_calls"), "an array", other)),
    };
    let place = format!("{name}.content");
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().try_for_each(|(at, part)| check_part(&format!("{place}[{at}]"), part))
        }
        None | Some(Value::Null) if role == "assistant" && calls => Ok(()),
        None | Some(Value::Null) => Err(ApiError::missing(&place)),
        Some(other) => Err(wrong_type(&place, "a string or an array of content parts", other)),
    }
}

fn check_part(name: &str, part: &Value) -> Result<(), ApiError> {
    let Value::Object(part) = part else { return Err(wrong_type(name, "an object", part)) };
    match part.get("type") {
        Some(Value::String(kind)) if kind == "text" => match part.get("text") {
            Some(Value::String(_)) => Ok(()),
            None => Err(ApiError::missing(&format!("{name}.text"))),
            Some(other) => Err(wrong_type(&format!("{name}.text"), "a string", other)),
        },
        Some(Value::String(kind)) => {
            let message =
                format!("Invalid '{name}': content of type '{kind}' is not supported, only 'text' is.");
            Err(ApiError::unsupported(format!("{name}.type"), message))
        }
        None => Err(ApiError::missing(&format!("{name}.type"))),
        Some(other) => Err(wrong_type(&format!("{name}.type"), "a string", other)),
    }
}

/// Tools are shown to the template; no call is parsed out of the answer yet.
fn tools(fields: &mut Fields) -> Result<Option<Json>, ApiError> {
    let tools = fields.array("tools")?;
    if let Some((index, wrong)) = tools
        .iter()
        .flatten()
        .enumerate()
        .find(|(_, tool)| !tool.get("function").is_some_and(Value::is_object))
    {
        let place = format!("tools[{index}]");
        return Err(match wrong {
            Value::Object(_) => ApiError::missing(&format!("{place}.function")),
            other => wrong_type(&place, "an object", other),
        });
    }
    let shown = match fields.value("tool_choice") {
        None => true,
        Some(Value::String(choice)) if choice == "auto" => true,
        Some(Value::String(choice)) if choice == "none" => false,
        Some(_) => {
            let message = "Invalid 'tool_choice': only 'none' and 'auto' are supported.";
            return Err(ApiError::unsupported("tool_choice", message));
        }
    };
    Ok(tools.filter(|tools| shown && !tools.is_empty()).map(|tools| Json::of(&tools)))
}

fn template_kwargs(fields: &mut Fields) -> Result<Option<Json>, ApiError> {
    let mut variables = match fields.value("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("chat_template_kwargs", "an object", &other)),
    };
    if let Some(effort) = fields.text("reasoning_effort")? {
        variables.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok((!variables.is_empty()).then(|| Json::of(&variables)))
}

/// What asks for something other than plain text.
fn only_text(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(mut format) = fields.object("response_format")? {
        match format.text("type")?.as_deref() {
            Some("text") => {}
            None => return Err(ApiError::missing("response_format.type")),
            Some(kind) => {
                let message =
                    format!("Invalid 'response_format': type '{kind}' is not supported, only 'text' is.");
                return Err(ApiError::unsupported("response_format", message));
            }
        }
    }
    if let Some(modality) = fields.texts("modalities")?.into_iter().flatten().find(|m| m != "text") {
        let message = format!("Invalid 'modalities': '{modality}' is not supported, only 'text' is.");
        return Err(ApiError::unsupported("modalities", message));
    }
    match fields.value("function_call") {
        None => Ok(()),
        Some(Value::String(choice)) if choice == "none" => Ok(()),
        Some(_) => {
            Err(ApiError::unsupported("function_call", "'function_call' is not supported: use 'tools'."))
        }
    }
}

#[cfg(test)]
mod tests;
