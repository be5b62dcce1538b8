use serde_json::{Map, Value};

use crate::error::ErrorKind;

/// Typed access to a JSON object. A field that is absent or `null` is `None`; one of another type is an error that
/// names it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Put before field names in errors: `rope_scaling.`
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: "" }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is given, be it as `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ErrorKind> {
        let Some(value) = self.get(name) else { return Ok(None) };
        convert(value)
            .map(Some)
            .ok_or_else(|| self.malformed(name, format!("expected {expected}, found {}", brief(value))))
    }

    pub(crate) fn u32(&self, name: &str) -> Result<Option<u32>, ErrorKind> {
        self.typed(name, "an integer from 0 to 4294967295", as_u32)
    }

    pub(crate) fn f32(&self, name: &str) -> Result<Option<f32>, ErrorKind> {
        self.typed(name, "a finite number", |value| {
            value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
        })
    }

    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>, ErrorKind> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, name: &str) -> Result<Option<&'a str>, ErrorKind> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ErrorKind> {
        self.typed(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub(crate) fn object(&self, name: &'a str) -> Result<Option<Fields<'a>>, ErrorKind> {
        let object = self.typed(name, "an object", Value::as_object)?;
        Ok(object.map(|object| Fields { object, prefix: name }))
    }

    /// One id or a list of ids.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>, ErrorKind> {
        let ids = self.typed(name, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(as_u32).collect(),
            id => Some(vec![as_u32(id)?]),
        });
        Ok(ids?.unwrap_or_default())
    }

    pub(crate) fn malformed(&self, name: &str, reason: impl std::fmt::Display) -> ErrorKind {
        ErrorKind::malformed(self.named(name), reason)
    }

    pub(crate) fn unsupported(&self, name: &str, reason: impl std::fmt::Display) -> ErrorKind {
        ErrorKind::unsupported(self.named(name), reason)
    }

    fn named(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| number.try_into().ok())
}

/// A value as errors show it.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 40;
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        other => {
            let text = other.to_string();
            if text.chars().count() > LONGEST {
                format!("{}…", text.chars().take(LONGEST).collect::<String>())
            } else {
                text
            }
        }
    }
}
