//! Going on with the last message: the rendering is cut where that message's text ends.

use messages::Fault;
use serde_json::Value;

use super::python;

/// Appended to the last message, then found again in the rendering.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
const FIELD: &str = "continue_final_message";

/// Knows where to cut.
#[derive(Debug)]
pub struct Cut {
    message: String,
}

/// Marks the end of the last message's text.
pub fn mark(messages: &mut [Value]) -> Result<Cut, Fault> {
    let Some(last) = messages.last_mut() else {
        return Err(Fault::invalid(FIELD, "there is no message to continue"));
    };
    let text = match last.get_mut("content") {
        Some(content @ Value::String(_)) => Some(content),
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        _ => None,
    };
    match text {
        Some(Value::String(text)) => {
            let message = text.clone();
            text.push_str(TAG);
            Ok(Cut { message })
        }
        _ => Err(Fault::invalid(FIELD, "the last message has no text to continue")),
    }
}

impl Cut {
    /// Cuts a rendering of the marked messages.
    pub fn apply(&self, mut rendered: String) -> Result<String, Fault> {
        let message = self.message.trim_matches(python::is_space);
        let Some(at) = rendered.rfind(TAG.trim_end()).filter(|_| rendered.contains(message)) else {
            let text = "the model's chat template does not keep the last message as it is";
            return Err(Fault::invalid(FIELD, text));
        };
        let kept = rendered[at..].starts_with(TAG);
        rendered.truncate(at);
        if !kept {
            // The template trims the message, so the text before the tag would have been trimmed too.
            rendered.truncate(rendered.trim_end_matches(python::is_space).len());
        }
        Ok(rendered)
    }
}
