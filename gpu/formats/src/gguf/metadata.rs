use std::collections::BTreeMap;

use super::{cursor::Cursor, types::value};
use crate::error::ErrorKind;

/// Longest key that the format allows.
const MAX_KEY_BYTES: usize = 65_535;
/// Longest string value; chat templates and licences stay far below.
const MAX_STRING_BYTES: usize = 16 << 20;
/// Longest array; vocabularies stay far below.
const MAX_ARRAY: usize = 16 << 20;
const MAX_KEYS: usize = 65_536;
/// Key length, one byte of key, type, one byte of value.
const LEAST_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;

/// Key-value pairs of a GGUF file. The typed getters give `None` for an absent key and an error that names the key
/// for one of another type.
#[derive(Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// Arrays of one type; the format's nested arrays are refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    Bytes(Vec<u8>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
}

impl Metadata {
    pub(super) fn parse(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, ErrorKind> {
        let mut pairs = BTreeMap::new();
        for i in 0..count {
            let key = cursor.string(MAX_KEY_BYTES, &format!("metadata key {i}"))?;
            if pairs.insert(key.to_owned(), Value::parse(cursor, key)?).is_some() {
                return Err(ErrorKind::malformed(key, "given twice"));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn count(cursor: &mut Cursor<'_>) -> Result<usize, ErrorKind> {
        cursor.count(LEAST_ENTRY_BYTES, MAX_KEYS, "metadata count")
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ErrorKind> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let reason = || ErrorKind::malformed(key, format!("expected {expected}, found {}", value.describe()));
        convert(value).map(Some).ok_or_else(reason)
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>, ErrorKind> {
        self.typed(key, "a number from 0 to 4294967295", Value::as_u32)
    }

    /// A number that some files give as one value and others as one per layer: `None` if absent, an error if the
    /// layers differ.
    pub fn u32_or_uniform(&self, key: &str) -> Result<Option<u32>, ErrorKind> {
        if let Some(Value::Array(Array::Ints(values))) = self.get(key) {
            return match values.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => {
                    let number = u32::try_from(*first);
                    number
                        .map(Some)
                        .map_err(|_| ErrorKind::malformed(key, format!("{first} is out of range")))
                }
                _ => Err(ErrorKind::unsupported(key, "a value that differs between layers")),
            };
        }
        self.u32(key)
    }

    pub fn f32(&self, key: &str) -> Result<Option<f32>, ErrorKind> {
        self.typed(key, "a finite number", |value| match *value {
            Value::Float(number) if (number as f32).is_finite() => Some(number as f32),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, ErrorKind> {
        self.typed(key, "true or false", |value| match *value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>, ErrorKind> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ErrorKind> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::Strings(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>, ErrorKind> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Array(Array::Ints(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, ErrorKind> {
        self.typed(key, "an array of f32", |value| match value {
            Value::Array(Array::Floats(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }
}

impl Value {
    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, ErrorKind> {
        Ok(match cursor.u32(key)? {
            value::U8 => Self::Unsigned(cursor.array::<1>(key)?[0].into()),
            value::I8 => Self::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
            value::U16 => Self::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
            value::I16 => Self::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
            value::U32 => Self::Unsigned(cursor.u32(key)?.into()),
            value::I32 => Self::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
            value::U64 => Self::Unsigned(cursor.u64(key)?),
            value::I64 => Self::Signed(i64::from_le_bytes(cursor.array(key)?)),
            value::F32 => Self::Float(f32::from_le_bytes(cursor.array(key)?).into()),
            value::F64 => Self::Float(f64::from_le_bytes(cursor.array(key)?)),
            value::BOOL => Self::Bool(boolean(cursor.array::<1>(key)?[0], key)?),
            value::STRING => Self::String(cursor.string(MAX_STRING_BYTES, key)?.to_owned()),
            value::ARRAY => Self::Array(Array::parse(cursor, key)?),
            other => return Err(ErrorKind::malformed(key, format!("unknown value type {other}"))),
        })
    }

    fn as_u32(&self) -> Option<u32> {
        match *self {
            Self::Unsigned(number) => number.try_into().ok(),
            Self::Signed(number) => number.try_into().ok(),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => format!("the float {number}"),
            Self::Bool(value) => value.to_string(),
            Self::String(_) => "a string".into(),
            Self::Array(_) => "an array".into(),
        }
    }
}

impl Array {
    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, ErrorKind> {
        let element = cursor.u32(key)?;
        Ok(match element {
            value::U8 => {
                let count = cursor.count(1, MAX_ARRAY, key)?;
                Self::Bytes(cursor.bytes(count, key)?.to_vec())
            }
            value::I8 => Self::ints(cursor, key, |bytes: [u8; 1]| i8::from_le_bytes(bytes).into())?,
            value::U16 => Self::ints(cursor, key, |bytes| u16::from_le_bytes(bytes).into())?,
            value::I16 => Self::ints(cursor, key, |bytes| i16::from_le_bytes(bytes).into())?,
            value::U32 => Self::ints(cursor, key, |bytes| u32::from_le_bytes(bytes).into())?,
            value::I32 => Self::ints(cursor, key, |bytes| i32::from_le_bytes(bytes).into())?,
            value::I64 => Self::ints(cursor, key, i64::from_le_bytes)?,
            // Nothing that is read holds numbers above i64; one that does must not pass as another.
            value::U64 => {
                Self::ints(cursor, key, |bytes| i64::try_from(u64::from_le_bytes(bytes)).unwrap_or(i64::MAX))?
            }
            value::F32 => Self::Floats(elements(cursor, key, |bytes| Ok(f32::from_le_bytes(bytes)))?),
            value::F64 => Self::Floats(elements(cursor, key, |bytes| Ok(f64::from_le_bytes(bytes) as f32))?),
            value::BOOL => Self::Bools(elements(cursor, key, |[byte]| boolean(byte, key))?),
            value::STRING => {
                let count = cursor.count(8, MAX_ARRAY, key)?;
                let strings = (0..count).map(|_| cursor.string(MAX_STRING_BYTES, key).map(str::to_owned));
                Self::Strings(strings.collect::<Result<_, _>>()?)
            }
            value::ARRAY => return Err(ErrorKind::malformed(key, "nested arrays are not allowed")),
            other => return Err(ErrorKind::malformed(key, format!("unknown array element type {other}"))),
        })
    }

    fn ints<const N: usize>(
        cursor: &mut Cursor<'_>,
        key: &str,
        number: impl Fn([u8; N]) -> i64,
    ) -> Result<Self, ErrorKind> {
        Ok(Self::Ints(elements(cursor, key, |bytes| Ok(number(bytes)))?))
    }
}

fn elements<const N: usize, T>(
    cursor: &mut Cursor<'_>,
    key: &str,
    element: impl Fn([u8; N]) -> Result<T, ErrorKind>,
) -> Result<Vec<T>, ErrorKind> {
    let count = cursor.count(N, MAX_ARRAY, key)?;
    (0..count).map(|_| element(cursor.array(key)?)).collect()
}

fn boolean(byte: u8, key: &str) -> Result<bool, ErrorKind> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(ErrorKind::malformed(key, format!("{other} is neither true nor false"))),
    }
}
