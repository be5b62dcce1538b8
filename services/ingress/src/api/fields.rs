//! Reading the fields of a JSON object, each by its name, so that every error can name it.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::error::ApiError;

type Read<T> = Result<Option<T>, ApiError>;

/// The fields of an object that have not been read yet. A field that is `null` counts as absent.
#[derive(Debug, Default)]
pub struct Fields {
    map: Map<String, Value>,
    /// Put before names in errors.
    path: String,
}

impl Fields {
    /// Parses a body that must be a JSON object.
    ///
    /// # Errors
    /// 400 with the position if it is not JSON.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body).map_err(|error| ApiError::malformed(&error))? {
            Value::Object(map) => Ok(Self { map, path: String::new() }),
            other => {
                let found = kind_of(&other);
                let message = format!("Invalid request body: expected an object, but got {found} instead.");
                Err(ApiError { param: None, ..ApiError::invalid("", "invalid_type", message) })
            }
        }
    }

    pub fn of(map: Map<String, Value>, path: impl Into<String>) -> Self {
        Self { map, path: path.into() }
    }

    /// The full name of a field.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    pub fn put(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    pub fn value(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    pub fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|value| !value.is_null())
    }

    pub fn text(&mut self, field: &str) -> Read<String> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a string", &other)),
        }
    }

    pub fn flag(&mut self, field: &str) -> Read<bool> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(field, "a boolean", &other)),
        }
    }

    pub fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Read<i64> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let whole = value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64);
        // A seed may be any 64-bit pattern.
        let wrapped = value.as_u64().map(|x| x as i64).filter(|_| *range.start() == i64::MIN);
        let Some(number) = value.as_i64().or(wrapped).or(whole) else {
            return Err(self.wrong(field, "an integer", &value));
        };
        self.within(field, "integer", number, &range).map(Some)
    }

    pub fn decimal(&mut self, field: &str, range: RangeInclusive<f64>) -> Read<f32> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let Some(number) = value.as_f64().filter(|x| x.is_finite()) else {
            return Err(self.wrong(field, "a decimal", &value));
        };
        self.within(field, "decimal", number, &range).map(|number| Some(number as f32))
    }

    pub fn object(&mut self, field: &str) -> Read<Self> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::of(map, self.name(field)))),
            Some(other) => Err(self.wrong(field, "an object", &other)),
        }
    }

    pub fn array(&mut self, field: &str) -> Read<Vec<Value>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(field, "an array", &other)),
        }
    }

    /// A string, or an array of strings.
    pub fn texts(&mut self, field: &str) -> Read<Vec<String>> {
        let items = match self.value(field) {
            None => return Ok(None),
            Some(Value::String(text)) => return Ok(Some(vec![text])),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong(field, "a string or an array of strings", &other)),
        };
        let texts = items.into_iter().enumerate().map(|(index, item)| match item {
            Value::String(text) => Ok(text),
            other => Err(self.wrong(&format!("{field}[{index}]"), "a string", &other)),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// An array of token ids below `vocab_size`.
    pub fn token_ids(&mut self, field: &str, vocab_size: u32) -> Read<Vec<u32>> {
        let items = self.array(field)?;
        items.map(|items| token_ids(&items, &self.name(field), vocab_size)).transpose()
    }

    /// The error of a field that has another type.
    pub fn wrong(&self, field: &str, expected: &str, found: &Value) -> ApiError {
        wrong_type(&self.name(field), expected, found)
    }

    fn within<T: PartialOrd + Display + Copy>(
        &self,
        field: &str,
        what: &str,
        number: T,
        range: &RangeInclusive<T>,
    ) -> Result<T, ApiError> {
        let name = self.name(field);
        let (code, bound, limit) = if number < *range.start() {
            ("below_min_value", "below minimum value", format!(">= {}", range.start()))
        } else if number > *range.end() {
            ("above_max_value", "above maximum value", format!("<= {}", range.end()))
        } else {
            return Ok(number);
        };
        let message =
            format!("Invalid '{name}': {what} {bound}. Expected a value {limit}, but got {number} instead.");
        let code = match (what, code) {
            ("integer", "below_min_value") => "integer_below_min_value",
            ("integer", _) => "integer_above_max_value",
            (_, "below_min_value") => "decimal_below_min_value",
            _ => "decimal_above_max_value",
        };
        Err(ApiError::invalid(name, code, message))
    }
}

/// Reads an array of token ids below `vocab_size`; `name` is what errors call it.
pub fn token_ids(items: &[Value], name: &str, vocab_size: u32) -> Result<Vec<u32>, ApiError> {
    let read = |(index, item): (usize, &Value)| match item.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) if id < vocab_size => Ok(id),
        Some(id) => {
            let place = format!("{name}[{index}]");
            let message =
                format!("Invalid '{place}': the vocabulary has {vocab_size} tokens, {id} is none of them.");
            Err(ApiError::invalid(place, "invalid_value", message))
        }
        None => Err(wrong_type(&format!("{name}[{index}]"), "a token id", item)),
    };
    items.iter().enumerate().map(read).collect()
}

pub fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = kind_of(found);
    let message = format!("Invalid type for '{name}': expected {expected}, but got {found} instead.");
    ApiError::invalid(name, "invalid_type", message)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
