//! Tokenizers and texts for tests.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, ModelWrapper, PreTokenizerWrapper, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
};

use crate::decode::Pieces;

/// The vocabulary of a byte-level tokenizer.
pub static BYTE_LEVEL: LazyLock<Pieces> =
    LazyLock::new(|| Pieces::new(Arc::new(byte_level(&gpt2(), &Value::Null))));

/// A token for each byte of the text.
pub fn bytes_of(text: &str) -> Vec<u32> {
    let id = |byte: u8| (0..BYTE_LEVEL.len() as u32).find(|id| BYTE_LEVEL.bytes(*id) == [byte]).unwrap();
    text.bytes().map(id).collect()
}

pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const CORPUS: [&str; 9] = [
    "The quick brown fox jumps over the lazy dog. It's what they'd said, isn't it? We'll see; I'm sure you've seen.",
    "fn main() {\n    let numbers = vec![1, 22, 333, 4444];\n\tprintln!(\"{}\", numbers.len());\r\n}\n\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, Fußgängerübergänge.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを 色は匂へど 散りぬるを。天地玄黃,宇宙洪荒。日月盈昃,辰宿列張。",
    "مرحبا بالعالم، كيف حالك اليوم؟ ٠١٢٣٤٥٦٧٨٩",
    "👩‍👩‍👧 🤖🤖 🎉 naïve café cafe\u{301} ½ ² Ⅷ ① \u{a0}\u{2003}wide   spaces     here\n\n\n  indented",
    "http://example.org/a_b-c?d=e&f=1.2e-3#g <b>bold</b> {\"key\": [true, false, null]} a+b=c; x*=y**2 // ...!!! ---",
    "again and again the other another brother mother bother gather together whether weather the the the the",
];

/// A byte-level tokenizer trained on a small corpus, with three added tokens.
pub fn byte_level(pre_tokenizer: &Value, normalizer: &Value) -> Tokenizer {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut tokenizer = trained(
        pre_tokenizer,
        normalizer,
        &json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": false, "use_regex": false}),
        |trainer| trainer.initial_alphabet = alphabet,
    );
    tokenizer.add_special_tokens([special("<|im_start|>"), special("<|im_end|>")]).unwrap();
    tokenizer.add_tokens([AddedToken::from("<think>", false).normalized(false)]).unwrap();
    tokenizer
}

pub fn gpt2() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

pub fn smollm() -> Value {
    json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, gpt2()]})
}

pub fn split(regex: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
}

/// A tokenizer as SentencePiece makes them: a mark for spaces, single bytes for unknown characters.
pub fn sentence_piece() -> Tokenizer {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let bytes: Vec<AddedToken> = (0..=255u8).map(|byte| special(&format!("<0x{byte:02X}>"))).collect();
    let trained = trained(&metaspace, &Value::Null, &decoder, |trainer| trainer.special_tokens = bytes);
    // The byte tokens belong to the model, not to the added vocabulary.
    let mut json = serde_json::to_value(&trained).unwrap();
    json["model"]["byte_fallback"] = true.into();
    json["added_tokens"] = json!([]);
    let mut tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
    tokenizer.add_special_tokens([special("<s>"), special("</s>")]).unwrap();
    tokenizer
}

fn special(text: &str) -> AddedToken {
    AddedToken::from(text, true).normalized(false)
}

fn trained(
    pre_tokenizer: &Value,
    normalizer: &Value,
    decoder: &Value,
    amend: impl FnOnce(&mut BpeTrainer),
) -> Tokenizer {
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    let mut trainer = BpeTrainer::default();
    trainer.show_progress = false;
    trainer.vocab_size = 1200;
    trainer.min_frequency = 1;
    amend(&mut trainer);
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer.clone()).unwrap();
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), CORPUS.iter()).unwrap();
    let mut json = serde_json::to_value(&tokenizer).unwrap();
    json["normalizer"] = normalizer.clone();
    json["decoder"] = decoder.clone();
    json["added_tokens"] = json!([]);
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// Text made of what tokenizers stumble over.
pub fn text() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        4 => prop::sample::select(vec![
            "'s", "'S", "'ſ", "'re", "'LL", "'vE", "'", "''d", " ", "  ", "   ", "\n", "\r\n", "\n\n ", "\t", "\u{a0}",
            "\u{2028}", "\u{3000}", "\u{85}", "\u{1c}", "1", "123", "12345678", "½", "٣٤", "Ⅷ", "é", "e\u{301}", "ﬁ",
            "中文", "日本語。", "🤖", "👩‍👩‍👧", "İ", "ß", "\u{200b}", "\0", "!!!", "...\r\n", "(a)", "_x", "-", "\u{fffd}",
            "\u{1e9b}\u{323}", "한국", "\u{1112}\u{1161}", "▁", "<|im_end|>", "<|im_start|>", "<think>", "<|im", "|>",
            "</s>", "<s>", "<0x41>", "\u{4}\u{6}", "a\u{4}b", "\u{4}\u{4}\u{6}the", "\u{40000}\u{80000}",
        ]).prop_map(str::to_owned),
        3 => prop::sample::select(CORPUS.join(" ").split(' ').map(str::to_owned).collect::<Vec<_>>()),
        2 => "[a-zA-Z]{1,12}",
        1 => any::<char>().prop_map(|c| c.to_string()),
        1 => (any::<char>(), 1..80usize).prop_map(|(c, n)| c.to_string().repeat(n)),
        1 => ("[ab]{1,3}", 20..60usize).prop_map(|(s, n)| s.repeat(n)),
    ];
    (prop::collection::vec(fragment, 0..40), any::<bool>())
        .prop_map(|(fragments, spaced)| fragments.join(if spaced { " " } else { "" }))
}
