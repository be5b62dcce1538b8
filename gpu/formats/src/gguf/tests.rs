use super::*;
use crate::DType;

/// Two tensors and a key.
fn sound() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.text("general.architecture", "llama");
    writer.tensor("a", DType::F32, &[2, 3], &[1; 24]);
    writer.tensor("b", DType::Q8_0, &[2, 64], &[2; 136]);
    writer.finish()
}

fn with_pair(key: &str, value: &Value) -> Vec<u8> {
    Writer::new().pair(key, value).finish()
}

fn error(file: &[u8]) -> String {
    Header::parse(file).unwrap_err().to_string()
}

/// `file` with the first occurrence of `from` replaced.
fn replace(mut file: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    file.splice(at..at + from.len(), to.iter().copied());
    file
}

#[test]
fn what_is_written_reads_back() {
    let values = [
        ("u", Value::Unsigned(u64::MAX)),
        ("i", Value::Signed(-3)),
        ("f", Value::Float(0.5)),
        ("b", Value::Bool(true)),
        ("s", Value::String("text".into())),
        ("as", Value::Array(Array::Strings(vec!["x".into(), String::new()]))),
        ("ai", Value::Array(Array::Ints(vec![-1, 2]))),
        ("af", Value::Array(Array::Floats(vec![1.5]))),
        ("ab", Value::Array(Array::Bools(vec![true, false]))),
        ("ay", Value::Array(Array::Bytes(vec![1, 2, 3]))),
    ];
    let mut writer = Writer::new();
    for (key, value) in &values {
        writer.pair(key, value);
    }
    let header = Header::parse(&writer.finish()).unwrap();
    for (key, value) in &values {
        assert_eq!(header.metadata.get(key), Some(value));
    }
}

#[test]
fn tensors_have_the_outermost_dimension_first_and_their_own_bytes() {
    let file = sound();
    let header = Header::parse(&file).unwrap();
    let b = &header.tensors["b"];
    assert_eq!((b.dtype, b.shape.as_slice()), (DType::Q8_0, [2, 64].as_slice()));
    assert_eq!(&file[b.bytes.clone()], &[2; 136]);
    assert_eq!(&file[header.tensors["a"].bytes.clone()], &[1; 24]);
}

#[test]
fn every_truncation_is_an_error() {
    let file = sound();
    let padding = 24;
    for length in 0..file.len() - padding {
        assert!(Header::parse(&file[..length]).is_err(), "{length} of {} bytes", file.len());
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let sound = sound();
    let cases = [
        (replace(sound.clone(), b"GGUF", b"GGML"), "magic: not a GGUF file"),
        (replace(sound.clone(), b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"), "version: GGUF version 1"),
        (replace(sound.clone(), b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "version: big-endian"),
        (
            replace(sound.clone(), &2u64.to_le_bytes(), &u64::MAX.to_le_bytes()),
            "tensor count: 18446744073709551615",
        ),
        // The key's length, then the value's.
        (
            replace(sound.clone(), &20u64.to_le_bytes(), &(1u64 << 60).to_le_bytes()),
            "metadata key 0: 1152921504606846976",
        ),
        (replace(sound.clone(), &5u64.to_le_bytes(), &999u64.to_le_bytes()), "general.architecture: 999"),
        (replace(sound.clone(), b"llama", b"\xff\xff\xff\xff\xff"), "general.architecture: invalid utf-8"),
        (replace(sound.clone(), b"\x01\0\0\0\0\0\0\0b", b"\x01\0\0\0\0\0\0\0a"), "a: tensor given twice"),
        // The dimensions of b, which has 64 columns: not a whole number of blocks, none, more than memory.
        (
            replace(sound.clone(), &64u64.to_le_bytes(), &65u64.to_le_bytes()),
            "b: shape [2, 65] is not a size of Q8_0",
        ),
        (replace(sound.clone(), &64u64.to_le_bytes(), &0u64.to_le_bytes()), "b: a dimension of length 0"),
        (replace(sound.clone(), &64u64.to_le_bytes(), &(1u64 << 63).to_le_bytes()), "b: shape"),
        (replace(sound.clone(), &64u64.to_le_bytes(), &(1u64 << 20).to_le_bytes()), "b: data at 32 of"),
        // Its type (8) and offset (32).
        (replace(sound.clone(), &[8, 0, 0, 0, 32], &[19, 0, 0, 0, 32]), "b: tensor type 19 is not supported"),
        (replace(sound.clone(), &[8, 0, 0, 0, 32], &[8, 0, 0, 0, 33]), "b: data offset not a multiple of 32"),
        (replace(sound.clone(), &[8, 0, 0, 0, 32], &[8, 0, 0, 0, 0]), "data overlaps"),
        (
            replace(sound, &[8, 0, 0, 0, 32], &[8, 0, 0, 0, 64]),
            "b: data at 64 of 136 bytes is beyond the end",
        ),
        (with_pair("general.alignment", &Value::Unsigned(48)), "general.alignment: 48 is not a power of two"),
        (with_pair("general.alignment", &Value::String("32".into())), "general.alignment: expected a number"),
        (Writer::new().number("k", 1).number("k", 2).finish(), "k: given twice"),
        (replace(with_pair("k", &Value::Bool(true)), &[7, 0, 0, 0, 1], &[7, 0, 0, 0, 2]), "k: 2 is neither"),
        (
            replace(with_pair("k", &Value::Bool(true)), &[7, 0, 0, 0], &[13, 0, 0, 0]),
            "k: unknown value type 13",
        ),
        (
            replace(
                with_pair("k", &Value::Array(Array::Strings(vec![]))),
                &[9, 0, 0, 0, 8],
                &[9, 0, 0, 0, 9],
            ),
            "k: nested arrays are not allowed",
        ),
        (
            replace(with_pair("k", &Value::Array(Array::Floats(vec![0.0]))), &1u64.to_le_bytes(), &[255; 8]),
            "metadata count: 18446744073709551615",
        ),
    ];
    for (file, expected) in cases {
        let error = error(&file);
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}

#[test]
fn an_array_longer_than_the_file_is_refused_before_room_is_made_for_it() {
    let file = with_pair("k", &Value::Array(Array::Ints(vec![7; 3])));
    let error = error(&replace(file, &[3, 0, 0, 0, 0, 0, 0, 0, 7], &[3, 0, 0, 0, 0, 1, 0, 0, 7]));
    assert!(error.starts_with("k: 1099511627779 entries, at most"), "{error}");
}

#[test]
fn a_key_of_another_type_is_an_error_and_an_absent_one_is_none() {
    let metadata = Header::parse(&with_pair("k", &Value::Signed(-1))).unwrap().metadata;
    assert_eq!(
        metadata.u32("k").unwrap_err().to_string(),
        "k: expected a number from 0 to 4294967295, found -1"
    );
    assert!(metadata.string("k").is_err() && metadata.strings("k").is_err() && metadata.f32("k").is_err());
    assert_eq!(metadata.u32("absent").unwrap(), None);
}

#[test]
fn a_value_for_each_layer_must_be_the_same() {
    let metadata = |values: Vec<i64>| {
        Header::parse(&with_pair("k", &Value::Array(Array::Ints(values)))).unwrap().metadata
    };
    assert_eq!(metadata(vec![4, 4, 4]).u32_or_uniform("k").unwrap(), Some(4));
    assert!(
        metadata(vec![4, 2]).u32_or_uniform("k").unwrap_err().to_string().contains("differs between layers")
    );
    assert!(metadata(vec![-4]).u32_or_uniform("k").is_err());
}
