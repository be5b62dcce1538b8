//! How text is split before byte-pair merges, by the names of `tokenizer.ggml.pre`.

use serde_json::{Value, json};

use crate::{Metadata, error::ErrorKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// GPT-2's pattern.
    Gpt2,
    /// Each digit apart, then GPT-2's pattern (SmolLM, StarCoder).
    Digits,
    /// Llama 3: up to three digits together.
    Llama3,
    /// Qwen 2 and later: each digit apart, text composed (NFC).
    Qwen2,
    /// Mistral Nemo: words split where their case turns.
    Tekken,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    pub(super) fn read(metadata: &Metadata) -> Result<Self, ErrorKind> {
        const KEY: &str = "tokenizer.ggml.pre";
        Ok(match metadata.string(KEY)? {
            None | Some("default" | "gpt-2") => Self::Gpt2,
            Some("smollm" | "starcoder" | "refact" | "command-r") => Self::Digits,
            Some("llama3" | "llama-v3" | "llama-bpe") => Self::Llama3,
            Some("qwen2" | "deepseek-r1-qwen") => Self::Qwen2,
            Some("tekken") => Self::Tekken,
            Some(other) => {
                let known = "default, gpt-2, smollm, starcoder, refact, command-r, llama-bpe, qwen2, tekken";
                return Err(ErrorKind::unsupported(KEY, format!("pre-tokenizer {other:?} (known: {known})")));
            }
        })
    }

    pub(super) fn json(self) -> Value {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let first = match self {
            Self::Gpt2 => return byte_level(true),
            Self::Digits => json!({ "type": "Digits", "individual_digits": true }),
            Self::Llama3 => split(LLAMA3),
            Self::Qwen2 => split(QWEN2),
            Self::Tekken => split(TEKKEN),
        };
        json!({ "type": "Sequence", "pretokenizers": [first, byte_level(self == Self::Digits)] })
    }

    pub(super) fn normalizer(self) -> Value {
        if self == Self::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// A piece that is a token is taken as it is, even where merges would not lead to it.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// What a file means that does not say whether texts begin with the first token.
    pub(super) fn bos_by_default(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}
