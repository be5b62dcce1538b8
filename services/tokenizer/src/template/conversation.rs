//! A conversation as a template sees it.

use messages::{
    Fault,
    input::{Chat, Json},
};
use serde_json::{Map, Value};

/// Variables that are not the client's to set.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// Names under which a message's reasoning is passed; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Between text parts of a message whose template wants one string.
const BETWEEN_PARTS: &str = "\n";
const PROBE: &str = "a-text-to-look-for";

/// In which form a template takes the content of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentForm {
    Strings,
    /// Lists of parts only.
    Parts,
    Either,
}

/// The parsed input of a rendering.
#[derive(Debug, Default)]
pub struct Conversation {
    pub messages: Vec<Value>,
    pub tools: Option<Value>,
    /// Further template variables.
    pub variables: Map<String, Value>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
}

impl Conversation {
    /// # Errors
    /// An invalid-request fault that names the field.
    pub fn read(chat: &Chat) -> Result<Self, Fault> {
        if chat.add_generation_prompt && chat.continue_final_message {
            let text = "continue_final_message and add_generation_prompt exclude each other";
            return Err(Fault::invalid("continue_final_message", text));
        }
        let variables: Map<String, Value> = match &chat.template_kwargs {
            Some(json) => parse(json, "chat_template_kwargs")?,
            None => Map::new(),
        };
        if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
            return Err(Fault::invalid("chat_template_kwargs", format!("'{name}' cannot be set here")));
        }
        let messages: Vec<Value> = parse(&chat.messages, "messages")?;
        if let Some(index) = messages.iter().position(|message| !message.is_object()) {
            return Err(Fault::invalid("messages", format!("messages[{index}] is not an object")));
        }
        Ok(Self {
            messages,
            tools: chat.tools.as_ref().map(|tools| parse(tools, "tools")).transpose()?,
            variables,
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
        })
    }

    /// The messages with their content in `form`, tool call arguments as objects, and reasoning under the name that
    /// templates read.
    pub(super) fn messages_as(&self, form: ContentForm) -> Result<Vec<Value>, Fault> {
        let mut messages = self.messages.clone();
        for (index, message) in messages.iter_mut().enumerate() {
            let Value::Object(message) = message else { continue };
            if let Some(content) = message.get_mut("content") {
                convert(content, form, index)?;
            }
            if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
                calls.iter_mut().for_each(arguments_as_object);
            }
            let reasoning =
                REASONING.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null())).cloned();
            if let Some(reasoning) = reasoning {
                let own = std::mem::take(message);
                message.insert("thinking".to_owned(), reasoning.clone());
                message.extend(own);
                message.insert("reasoning_content".to_owned(), reasoning);
            }
        }
        Ok(messages)
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &Json, field: &str) -> Result<T, Fault> {
    json.parse().map_err(|error| Fault::invalid(field, format!("{field}: {error}")))
}

fn convert(content: &mut Value, form: ContentForm, index: usize) -> Result<(), Fault> {
    match (form, &*content) {
        (ContentForm::Strings, Value::Array(parts)) => {
            let texts: Option<Vec<&str>> = parts.iter().map(text_of).collect();
            let Some(texts) = texts else {
                let text = format!("messages[{index}].content: this model takes only parts of type text");
                return Err(Fault::invalid("messages", text));
            };
            *content = Value::String(texts.join(BETWEEN_PARTS));
        }
        (ContentForm::Parts, Value::String(text)) => {
            *content = serde_json::json!([{"type": "text", "text": text}]);
        }
        _ => {}
    }
    Ok(())
}

fn text_of(part: &Value) -> Option<&str> {
    match part {
        Value::String(text) => Some(text),
        part => part.get("text")?.as_str(),
    }
}

/// Clients send the arguments of earlier tool calls as JSON text; templates expect the object.
fn arguments_as_object(call: &mut Value) {
    let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
        return;
    };
    if let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok()) {
        *arguments = Value::Object(object);
    }
}

/// Finds the form of content that a template takes, by rendering one message in each.
pub(super) fn probe(render: impl Fn(&[Value]) -> Option<String>) -> ContentForm {
    let render = |content: Value| {
        render(&[serde_json::json!({"role": "user", "content": content})]).filter(|text| text.contains(PROBE))
    };
    let string = render(Value::String(PROBE.to_owned()));
    let parts = render(serde_json::json!([{"type": "text", "text": PROBE}]));
    match (string, parts) {
        (None, Some(_)) => ContentForm::Parts,
        (Some(string), Some(parts)) if string == parts => ContentForm::Either,
        _ => ContentForm::Strings,
    }
}
