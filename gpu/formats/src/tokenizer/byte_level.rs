//! GPT-2's kind: bytes as visible characters, merged in the order of a list.

use serde_json::{Value, json};

use super::{pretokenizer::PreTokenizer, vocabulary::Vocabulary};
use crate::error::ErrorKind;

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Value, ErrorKind> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let missing =
        || ErrorKind::missing(format!("metadata key {MERGES}"), "the file's tokenizer is incomplete");
    let merges = vocabulary.metadata.strings(MERGES)?.ok_or_else(missing)?;
    let pairs = merges.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let (left, right) =
            pair.ok_or_else(|| ErrorKind::malformed(MERGES, format!("{merge:?} is not a pair")))?;
        Ok(json!([left, right]))
    });
    let pairs = pairs.collect::<Result<Vec<_>, ErrorKind>>()?;
    let pre = PreTokenizer::read(vocabulary.metadata)?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.json(),
        "post_processor": vocabulary.post_processor(pre.bos_by_default())?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignores_merges(),
            "vocab": vocabulary.map(),
            "merges": pairs,
        },
    }))
}
