use super::{Array, Value, types};
use crate::DType;

const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;

/// Builds a GGUF file in memory: for tests, fuzzing and small tools.
#[derive(Debug, Default)]
pub struct Writer {
    pairs: Vec<u8>,
    pair_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata pair. Integers are written as 32 bits where they fit, floats as f32.
    pub fn pair(&mut self, key: &str, value: &Value) -> &mut Self {
        string(&mut self.pairs, key);
        write_value(&mut self.pairs, value);
        self.pair_count += 1;
        self
    }

    pub fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.pair(key, &Value::String(text.into()))
    }

    pub fn number(&mut self, key: &str, number: u32) -> &mut Self {
        self.pair(key, &Value::Unsigned(number.into()))
    }

    /// Adds a tensor, outermost dimension first.
    ///
    /// # Panics
    /// If GGUF has no such type.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize], data: &[u8]) -> &mut Self {
        string(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&length| self.infos.extend((length as u64).to_le_bytes()));
        self.infos.extend(types::number(dtype).expect("a type that GGUF knows").to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensor_count += 1;
        self
    }

    /// The bytes of the file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = types::MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.pair_count.to_le_bytes());
        file.extend(&self.pairs);
        file.extend(&self.infos);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.data);
        file
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    use types::value as kind;
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => scalar(kind::U32, &n.to_le_bytes()),
            Err(_) => scalar(kind::U64, &n.to_le_bytes()),
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => scalar(kind::I32, &n.to_le_bytes()),
            Err(_) => scalar(kind::I64, &n.to_le_bytes()),
        },
        Value::Float(n) => scalar(kind::F32, &(*n as f32).to_le_bytes()),
        Value::Bool(value) => scalar(kind::BOOL, &[u8::from(*value)]),
        Value::String(text) => {
            out.extend(kind::STRING.to_le_bytes());
            string(out, text);
        }
        Value::Array(array) => {
            out.extend(kind::ARRAY.to_le_bytes());
            write_array(out, array);
        }
    }
}

fn write_array(out: &mut Vec<u8>, array: &Array) {
    use types::value as kind;
    let mut head = |kind: u32, count: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match array {
        Array::Bytes(bytes) => {
            head(kind::U8, bytes.len());
            out.extend(bytes);
        }
        Array::Ints(numbers) => {
            head(kind::I64, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Array::Floats(numbers) => {
            head(kind::F32, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Array::Bools(values) => {
            head(kind::BOOL, values.len());
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        Array::Strings(texts) => {
            head(kind::STRING, texts.len());
            texts.iter().for_each(|text| string(out, text));
        }
    }
}
