//! The environment that transformers gives to chat templates.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::{Clock, json, python};

/// The one template of an environment.
pub const NAME: &str = "chat_template";

/// What a template said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Raised(pub String);

pub fn build(source: &str, clock: Clock, fuel: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(fuel));
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter("string", |value: &Value| python::display(value));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: &str| strftime(clock, format));
    environment.add_template_owned(NAME, plain_blocks(source))?;
    Ok(environment)
}

/// `{% generation %}` marks what a model is trained on; for rendering it is a block without effect.
fn plain_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        plain.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let inside = tag[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let (open, close) = (&tag[..3], &tag[end - 1..end + 2]);
        let (open, close) = (
            if open.ends_with(['-', '+']) { open } else { "{%" },
            if close.starts_with(['-', '+']) { close } else { "%}" },
        );
        match inside {
            "generation" => plain.extend([open, " if true ", close]),
            "endgeneration" => plain.extend([open, " endif ", close]),
            _ => {
                // Only the opening is consumed: the tag may hold a string with "%}" in it.
                plain.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        }
        rest = &tag[end + 2..];
    }
    plain.push_str(rest);
    plain
}

fn print(output: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => output.write_str(text),
        None => output.write_str(&python::display(value)),
    };
    written.map_err(Error::from)
}

/// Python's methods; `strip` and its kind trim what Python takes for white space.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), true) = (value.as_str(), args.is_empty()) {
        match name {
            "strip" => return Ok(text.trim_matches(python::is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(python::is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(python::is_space).into()),
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = python::display(value);
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => text.trim_matches(python::is_space).to_owned(),
    }
}

fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().filter(|n| *n <= 64).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "tojson: indent must be text or 0 to 64")
            })?),
        }),
        _ => None,
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let (item, key): (String, String) = from_args(&pair)?;
            Some((item, key))
        }
        _ => None,
    };
    let style = json::Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        separators,
    };
    options.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson: the value is undefined"));
    }
    json::dumps(value, &style)
}

fn strftime(clock: Clock, format: &str) -> Result<String, Error> {
    use chrono::format::{Item, StrftimeItems};
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format '{format}'")));
    }
    Ok(clock().format_with_items(items.into_iter()).to_string())
}
