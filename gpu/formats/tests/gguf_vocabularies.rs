//! Token ids of tokenizers built from GGUF metadata, against ids that the models' own tokenizers gave.

use std::{fs, path::Path};

use formats::Gguf;
use tokenizers::Tokenizer;

/// Between two texts of an `.inp` file.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
const VOCABULARIES: [&str; 6] = ["llama-bpe", "llama-spm", "qwen2", "gpt-2", "starcoder", "command-r"];

/// llama.cpp's source has vocabulary files with texts (`.inp`) and the ids that Hugging Face's tokenizers give for
/// them (`.out`); they are too large to keep here.
#[test]
#[ignore = "needs STATOR_GGUF_VOCABULARIES, the folder `models` of llama.cpp's source"]
fn ids_are_those_of_the_original_tokenizers() {
    let folder = std::env::var("STATOR_GGUF_VOCABULARIES").unwrap();
    for name in VOCABULARIES {
        let file = Path::new(&folder).join(format!("ggml-vocab-{name}.gguf"));
        let (texts, ids) = (file.with_extension("gguf.inp"), file.with_extension("gguf.out"));
        let json = Gguf::open(&file).unwrap().tokenizer_json().unwrap();
        let tokenizer = Tokenizer::from_bytes(json).unwrap();
        let (texts, ids) = (fs::read_to_string(texts).unwrap(), fs::read_to_string(ids).unwrap());
        let mut wrong = 0;
        let mut cases = 0;
        for (text, expected) in texts.split(SEPARATOR).zip(ids.lines()) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let encoding = tokenizer.encode(text, false).unwrap();
            cases += 1;
            if encoding.get_ids() != expected {
                wrong += 1;
                eprintln!("{name}: {text:?}\n  {:?}\n  {expected:?}", encoding.get_ids());
            }
        }
        assert!(cases > 30, "{name}: {cases} texts");
        assert_eq!(wrong, 0, "{name}: of {cases} texts");
    }
}
