//! Chat templates, rendered byte for byte as Hugging Face transformers renders them.
//!
//! A template is part of a model's files and so untrusted: it runs in a sandbox without I/O, under a bound on
//! instructions and on output.

mod continuation;
mod conversation;
mod environment;
mod json;
mod python;

use std::{collections::BTreeMap, io};

use chrono::NaiveDateTime;
use messages::Fault;
use minijinja::{Environment, Error, Value, context, value::Serde};

use conversation::ContentForm;
pub use conversation::Conversation;

/// Virtual machine instructions that one rendering may take: far above any real chat, about a second of work.
const FUEL: u64 = 20_000_000;
/// Bytes that one rendering may produce: above what the bus carries as a request.
const RENDERED_AT_MOST: usize = 32 << 20;

/// Tells the local time to `strftime_now`.
pub type Clock = fn() -> NaiveDateTime;

/// The wall clock of this machine.
pub fn local_time() -> NaiveDateTime {
    chrono::Local::now().naive_local()
}

/// A chat template that cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct BadTemplate(String);

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` … by variable name.
    special_tokens: BTreeMap<String, String>,
    content: ContentForm,
}

impl Template {
    /// Compiles a template and finds out in which form it takes message content.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn compile(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        clock: Clock,
    ) -> Result<Self, BadTemplate> {
        let environment = environment::build(source, clock, FUEL).map_err(|e| BadTemplate(e.to_string()))?;
        let mut template = Self { environment, special_tokens, content: ContentForm::Strings };
        template.content =
            conversation::probe(|messages| template.run(messages, &Conversation::default()).ok());
        Ok(template)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// An invalid-request fault with the template's own message, or with what in the conversation does not fit it.
    pub fn render(&self, conversation: &Conversation) -> Result<String, Fault> {
        let mut messages = conversation.messages_as(self.content)?;
        if !conversation.continue_final_message {
            return self.run(&messages, conversation).map_err(|error| refused(&error));
        }
        let cut = continuation::mark(&mut messages)?;
        let rendered = self.run(&messages, conversation).map_err(|error| refused(&error))?;
        cut.apply(rendered)
    }

    fn run(&self, messages: &[serde_json::Value], conversation: &Conversation) -> Result<String, Error> {
        let template = self.environment.get_template(environment::NAME)?;
        let variables = context! {
            ..context! {
                messages => Value::from(Serde(messages)),
                tools => conversation.tools.as_ref().map(|tools| Value::from(Serde(tools))),
                documents => Value::from(()),
                add_generation_prompt => conversation.add_generation_prompt,
            },
            ..Value::from(Serde(&conversation.variables)),
            ..Value::from(Serde(&self.special_tokens)),
        };
        let mut output = Bounded::default();
        template.render_captured_to(variables, &mut output)?;
        Ok(String::from_utf8_lossy(&output.0).into_owned())
    }
}

/// Output that fails once it is too long.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_AT_MOST {
            return Err(io::Error::other(format!("the rendered prompt passes {RENDERED_AT_MOST} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template's own message if it raised one, else where and why it failed.
fn refused(error: &Error) -> Fault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<environment::Raised>() {
            return Fault::invalid("messages", raised.0.clone());
        }
        cause = inner.source();
    }
    Fault::invalid("messages", format!("the model's chat template does not take this conversation: {error}"))
}

#[cfg(test)]
mod tests;
