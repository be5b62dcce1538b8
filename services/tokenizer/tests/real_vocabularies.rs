//! The encoder against the `tokenizers` crate with vocabularies of real models.
//!
//! Takes the GGUF files that `STATOR_TEST_MODELS` lists (colon-separated), else the model that scripts/model fetches;
//! without either there is nothing to test.

use std::{path::PathBuf, sync::Arc};

use formats::Gguf;
use proptest::{prelude::*, test_runner::TestRunner};
use tokenizer::{
    decode::{Pieces, TextStream},
    encode::{Encoder, Words},
};
use tokenizers::Tokenizer;

const CACHED: &str = ".cache/stator/models/SmolLM2-135M-Instruct.Q4_1.gguf";

fn files() -> Vec<PathBuf> {
    match std::env::var_os("STATOR_TEST_MODELS") {
        Some(list) => std::env::split_paths(&list).collect(),
        None => std::env::home_dir()
            .map(|home| home.join(CACHED))
            .filter(|file| file.exists())
            .into_iter()
            .collect(),
    }
}

fn text() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        3 => "[a-zA-Z' ]{1,40}",
        2 => r"\PC{1,20}",
        2 => r"[\p{L}\p{N}\p{M}\s]{1,20}",
        1 => "[0-9.,:;!?'\"()<>|\\-_=+*/ \r\n\t]{1,30}",
        1 => prop::sample::select(vec![
            "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<think>", "</s>", "'S", "'ſ", "'ve", "\r\n\r\n",
            "\u{2028}", "e\u{301}", "가", "\u{1100}\u{1161}", "🤖", "ﷺ", "\u{10fffd}",
        ]).prop_map(str::to_owned),
        1 => prop::collection::vec(any::<char>(), 0..20).prop_map(|chars| chars.into_iter().collect()),
    ];
    prop::collection::vec(fragment, 0..30).prop_map(|fragments| fragments.concat())
}

#[test]
fn real_vocabularies_encode_and_decode_as_tokenizers_does() {
    for file in files() {
        let json = Gguf::open(&file).unwrap().tokenizer_json().unwrap();
        let oracle = Arc::new(Tokenizer::from_bytes(json).unwrap());
        let encoder = Encoder::new(oracle.clone(), 1 << 20);
        let pieces = Pieces::new(oracle.clone());
        eprintln!("{}: fast {}", file.display(), encoder.is_fast());
        let mut words = Words::default();
        let words = std::cell::RefCell::new(&mut words);
        TestRunner::new(ProptestConfig { cases: 500, ..ProptestConfig::default() })
            .run(&text(), |text| {
                let ids = encoder.encode(&text, true, &mut words.borrow_mut()).unwrap().ids;
                let expected = oracle.encode_fast(text.as_str(), true).unwrap();
                prop_assert_eq!(&ids[..], expected.get_ids(), "{}: {:?}", file.display(), text);
                let decoded = TextStream::decode_all(&pieces, ids.iter().copied(), true);
                prop_assert_eq!(decoded, oracle.decode(&ids, true).unwrap());
                Ok(())
            })
            .unwrap();
    }
}
