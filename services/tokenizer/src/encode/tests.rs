use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::samples;

struct Case {
    name: &'static str,
    encoder: Encoder,
    fast: bool,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let nfc = json!({"type": "NFC"});
    let case =
        |name, tokenizer, fast| Case { name, encoder: Encoder::new(Arc::new(tokenizer), 1 << 20), fast };
    let mut whole: Value =
        serde_json::to_value(samples::byte_level(&samples::split(samples::LLAMA3), &Value::Null)).unwrap();
    whole["model"]["ignore_merges"] = true.into();
    // A word in the vocabulary that no merges make.
    let id = whole["model"]["vocab"].as_object().unwrap().len() + 10;
    whole["model"]["vocab"]["zebraquagga"] = id.into();
    // As SmolLM2's vocabulary, which lacks bytes that its makers never saw.
    let lacking = |unknown: Option<&str>, fuse: bool| {
        let tokenizer = samples::byte_level(&samples::smollm(), &Value::Null);
        let mut json = serde_json::to_value(tokenizer).unwrap();
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.retain(|token, _| !["Ą", "Ć", "Ĝ", "ñ", "ò", "ô", "į"].contains(&token.as_str()));
        let kept: Vec<String> = vocabulary.keys().cloned().collect();
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|pair| {
            let (left, right) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            [left, right, &format!("{left}{right}")].iter().all(|token| kept.contains(&token.to_string()))
        });
        json["model"]["unk_token"] = json!(unknown);
        json["model"]["fuse_unk"] = fuse.into();
        Tokenizer::from_bytes(json.to_string()).unwrap()
    };
    let mut flagged = samples::byte_level(&samples::gpt2(), &Value::Null);
    flagged.add_tokens([tokenizers::AddedToken::from("<mask>", true).lstrip(true)]).unwrap();
    let mut normalized = samples::byte_level(&samples::split(samples::QWEN2), &nfc);
    normalized.add_tokens([tokenizers::AddedToken::from("again", false)]).unwrap();
    vec![
        case("gpt2", samples::byte_level(&samples::gpt2(), &Value::Null), true),
        case("smollm", samples::byte_level(&samples::smollm(), &Value::Null), true),
        case("llama3", samples::byte_level(&samples::split(samples::LLAMA3), &Value::Null), true),
        case("llama3, whole words", Tokenizer::from_bytes(whole.to_string()).unwrap(), true),
        case("qwen2", samples::byte_level(&samples::split(samples::QWEN2), &nfc), true),
        case("qwen2, normalized added token", normalized, true),
        case("stripping added token", flagged, true),
        case("bytes left out", lacking(None, false), true),
        case("bytes unknown", lacking(Some("!"), false), true),
        case("bytes unknown, fused", lacking(Some("!"), true), true),
        case("bytes unknown to an unknown token", lacking(Some("<nowhere>"), false), false),
        case("sentence piece", samples::sentence_piece(), false),
    ]
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn ids_are_those_of_the_tokenizers_crate(texts in prop::collection::vec(samples::text(), 1..4)) {
        for case in CASES.iter() {
            let mut words = Words::default();
            for text in &texts {
                for special in [false, true] {
                    let ids = case.encoder.encode(text, special, &mut words).map(|encoded| encoded.ids).ok();
                    let expected = case.encoder.oracle(text, special).ok();
                    prop_assert_eq!(&ids, &expected, "{}: {:?}", case.name, text);
                }
            }
        }
    }

    #[test]
    fn a_growing_conversation_encodes_as_if_it_were_new(turns in prop::collection::vec(samples::text(), 1..6)) {
        for case in CASES.iter() {
            let mut words = Words::default();
            let mut text = String::new();
            for turn in &turns {
                text += &format!("<|im_start|>user\n{turn}<|im_end|>\n");
                let ids = case.encoder.encode(&text, false, &mut words).map(|encoded| encoded.ids).ok();
                prop_assert_eq!(ids, case.encoder.oracle(&text, false).ok(), "{}: {:?}", case.name, text);
            }
        }
    }
}

#[test]
fn the_known_tokenizers_take_the_fast_path() {
    for case in CASES.iter().filter(|case| case.encoder.splitter.is_some()) {
        assert_eq!(case.encoder.is_fast(), case.fast, "{}", case.name);
    }
    let with_prefix_space = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true});
    let tokenizer = samples::byte_level(&with_prefix_space, &Value::Null);
    assert!(!Encoder::new(Arc::new(tokenizer), 0).is_fast());
}

#[test]
fn a_second_turn_takes_the_first_from_the_cache() {
    let encoder = Encoder::new(Arc::new(samples::byte_level(&samples::smollm(), &Value::Null)), 1 << 20);
    let mut words = Words::default();
    let first = format!("<|im_start|>user\n{}<|im_end|>\n", "The lazy dog sleeps. ".repeat(20));
    let alone = encoder.encode(&first, false, &mut words).unwrap();
    assert_eq!(alone.cached, 0);
    let again = encoder.encode(&format!("{first}<|im_start|>assistant\n"), false, &mut words).unwrap();
    assert!(
        again.cached > 50 && again.cached + 10 > alone.ids.len(),
        "{} of {}",
        again.cached,
        alone.ids.len()
    );
}

#[test]
fn a_word_of_a_megabyte_is_no_attack() {
    let encoder = Encoder::new(Arc::new(samples::byte_level(&samples::gpt2(), &Value::Null)), 1 << 20);
    let text = "aab".repeat(1 << 18);
    let ids = encoder.encode(&text, false, &mut Words::default()).unwrap().ids;
    assert_eq!(ids, encoder.oracle(&text, false).unwrap());
}
