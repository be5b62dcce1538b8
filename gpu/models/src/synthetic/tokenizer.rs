//! A byte-level BPE tokenizer that encodes any text: 256 bytes, some common English merges, ChatML tokens.

use serde_json::{Map, Value, json};

/// Applied in this order. A `Ġ` is a space.
const MERGES: [(&str, &str); 28] = [
    ("t", "h"),
    ("th", "e"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("Ġ", "s"),
    ("Ġt", "h"),
    ("Ġth", "e"),
    ("in", "g"),
    ("an", "d"),
    ("Ġ", "w"),
    ("o", "u"),
    ("l", "l"),
    ("e", "n"),
    ("h", "e"),
    ("Ġ", "o"),
    ("Ġo", "f"),
    ("Ġa", "nd"),
    ("n", "d"),
    ("e", "s"),
    ("l", "o"),
    ("u", "s"),
    ("ll", "o"),
    ("he", "llo"),
];
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const BYTES: u32 = 256;
const FIRST_SPECIAL: u32 = BYTES + MERGES.len() as u32;

/// Tokens, the last ones unused, and so the least vocabulary of a model that this tokenizer fits.
pub const VOCAB_SIZE: u32 = (FIRST_SPECIAL + SPECIAL.len() as u32).next_multiple_of(32);
const END_OF_TEXT: u32 = FIRST_SPECIAL;
pub(super) const END_OF_TURN: u32 = FIRST_SPECIAL + 2;

const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Name and content of each file.
pub(super) fn files() -> [(&'static str, Value); 3] {
    [
        ("tokenizer.json", tokenizer_json()),
        (
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": null,
                "eos_token": SPECIAL[2],
                "pad_token": SPECIAL[0],
                "chat_template": CHATML,
            }),
        ),
        ("generation_config.json", json!({ "eos_token_id": [END_OF_TURN, END_OF_TEXT] })),
    ]
}

fn tokenizer_json() -> Value {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    };
    (0..=255).for_each(|byte| add(visible(byte).to_string()));
    MERGES.iter().for_each(|(left, right)| add(format!("{left}{right}")));
    let added = |(i, content): (usize, &&str)| {
        json!({
            "id": FIRST_SPECIAL + i as u32, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level(true),
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": MERGES.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>(),
        },
    })
}

/// GPT-2's visible stand-in for a byte: itself where it is printable, else the next character from U+0100 on.
fn visible(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
        char::from_u32(0x100 + before).expect("68 characters from U+0100 on are all assigned")
    }
}
