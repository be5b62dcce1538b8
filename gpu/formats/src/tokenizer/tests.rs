use serde::Deserialize;
use serde_json::json;
use tokenizers::Tokenizer;

use super::*;
use crate::{
    Metadata,
    gguf::{Array, Header, Value, Writer},
};

#[derive(Deserialize)]
struct SentencePiece {
    tokens: Vec<String>,
    scores: Vec<f32>,
    token_types: Vec<i64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::Strings(texts.iter().map(|&text| text.into()).collect()))
}

fn metadata(writer: &Writer) -> Metadata {
    Header::parse(&writer.finish()).unwrap().metadata
}

fn sentencepiece_model() -> (SentencePiece, Writer) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/sentencepiece.json");
    let model: SentencePiece = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut writer = Writer::new();
    writer.text("tokenizer.ggml.model", "llama");
    writer.pair("tokenizer.ggml.tokens", &Value::Array(Array::Strings(model.tokens.clone())));
    writer.pair("tokenizer.ggml.scores", &Value::Array(Array::Floats(model.scores.clone())));
    writer.pair("tokenizer.ggml.token_type", &Value::Array(Array::Ints(model.token_types.clone())));
    writer.number("tokenizer.ggml.unknown_token_id", 0);
    writer.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.eos_token_id", 2);
    (model, writer)
}

/// Bytes `a` to `e` and some merges of them, a control token and a user-defined one.
fn byte_level() -> Writer {
    let mut writer = Writer::new();
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "smollm");
    writer
        .pair("tokenizer.ggml.tokens", &strings(&["a", "b", "c", "1", "ab", "abc", "11", "<end>", "<tool>"]));
    writer.pair("tokenizer.ggml.merges", &strings(&["a b", "ab c", "1 1"]));
    writer.pair("tokenizer.ggml.token_type", &Value::Array(Array::Ints(vec![1, 1, 1, 1, 1, 1, 1, 3, 4])));
    writer.number("tokenizer.ggml.bos_token_id", 7);
    writer
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
    tokenizer.encode(text, special).unwrap().get_ids().to_vec()
}

#[test]
fn sentencepiece_ids_are_those_of_its_library() {
    let (model, writer) = sentencepiece_model();
    let tokenizer = build(&from_gguf(&metadata(&writer)).unwrap(), 420).unwrap();
    assert!(model.cases.len() > 5);
    for case in &model.cases {
        assert_eq!(ids(&tokenizer, &case.text, false), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, true).unwrap(), case.decoded, "{:?}", case.text);
    }
    assert_eq!(ids(&tokenizer, "the ship", true)[0], 1, "begins with bos unless the file says otherwise");
}

#[test]
fn byte_level_pieces_merge_in_order_within_their_words() {
    let tokenizer = build(&from_gguf(&metadata(&byte_level())).unwrap(), 9).unwrap();
    assert_eq!(ids(&tokenizer, "abcab", true), [5, 4]);
    assert_eq!(ids(&tokenizer, "11", false), [3, 3], "smollm takes digits one by one");
    assert_eq!(ids(&tokenizer, "a<end>b<tool>", false), [0, 7, 1, 8]);
    assert_eq!(
        tokenizer.decode(&[0, 7, 1, 8], true).unwrap(),
        "ab<tool>",
        "control tokens are left out of text"
    );
}

#[test]
fn bos_is_put_first_where_the_file_asks_for_it() {
    let mut writer = byte_level();
    writer.pair("tokenizer.ggml.add_bos_token", &Value::Bool(true));
    let tokenizer = build(&from_gguf(&metadata(&writer)).unwrap(), 9).unwrap();
    assert_eq!(ids(&tokenizer, "ab", true), [7, 4]);
    assert_eq!(ids(&tokenizer, "ab", false), [4]);
}

#[test]
fn errors_name_the_key() {
    let error = |change: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new();
        change(&mut writer);
        from_gguf(&metadata(&writer)).unwrap_err().to_string()
    };
    let tokens = |writer: &mut Writer, tokens: &[&str]| {
        writer.text("tokenizer.ggml.model", "gpt2").pair("tokenizer.ggml.tokens", &strings(tokens));
    };
    let cases = [
        (error(&|_| {}), "metadata key tokenizer.ggml.tokens is missing"),
        (error(&|w| tokens(w, &["a", "a"])), "tokenizer.ggml.tokens: token \"a\" is given twice"),
        (error(&|w| tokens(w, &["a"])), "metadata key tokenizer.ggml.merges is missing"),
        (
            error(&|w| {
                tokens(w, &["a"]);
                w.pair("tokenizer.ggml.merges", &strings(&["ab"]));
            }),
            "tokenizer.ggml.merges: \"ab\" is not a pair",
        ),
        (
            error(&|w| {
                tokens(w, &["a"]);
                w.pair("tokenizer.ggml.merges", &strings(&[])).text("tokenizer.ggml.pre", "bloom");
            }),
            "tokenizer.ggml.pre: pre-tokenizer \"bloom\"",
        ),
        (
            error(&|w| {
                tokens(w, &["a"]);
                w.pair("tokenizer.ggml.token_type", &Value::Array(Array::Ints(vec![1, 1])));
            }),
            "tokenizer.ggml.token_type: 2 types for 1 tokens",
        ),
        (
            error(&|w| {
                w.text("tokenizer.ggml.model", "rwkv").pair("tokenizer.ggml.tokens", &strings(&["a"]));
            }),
            "tokenizer.ggml.model: tokenizer \"rwkv\"",
        ),
        (
            error(&|w| {
                w.text("tokenizer.ggml.model", "llama").pair("tokenizer.ggml.tokens", &strings(&["a"]));
                w.pair("tokenizer.ggml.scores", &Value::Array(Array::Floats(vec![])));
            }),
            "tokenizer.ggml.scores: expected a number for each of 1 tokens",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}

#[test]
fn ids_beyond_the_models_vocabulary_are_refused() {
    let json = from_gguf(&metadata(&byte_level())).unwrap();
    let error = build(&json, 8).unwrap_err().to_string();
    assert!(error.contains("token \"<tool>\" has id 8, the model's vocabulary is 8"), "{error}");
    let malformed = json!({ "version": "1.0", "model": { "type": "BPE" } }).to_string();
    assert!(build(malformed.as_bytes(), 8).is_err());
}
