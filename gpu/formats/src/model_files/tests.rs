use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    DType,
    gguf::{self, Array, Writer},
};

/// A model folder with tiny weights: enough for everything but running it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.json("config.json", json!({ "model_type": "qwen3", "vocab_size": 8, "eos_token_id": 5 }));
        folder.json(
            "tokenizer.json",
            json!({
                "version": "1.0",
                "added_tokens": [added(5, "<end>"), added(6, "<begin>"), added(7, "<stop>")],
                "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2, "c": 3, "d": 4 }, "merges": [["a", "b"]] },
            }),
        );
        folder.json(
            "tokenizer_config.json",
            json!({ "eos_token": "<end>", "bos_token": { "content": "<begin>" } }),
        );
        folder.weights("model.safetensors", &["x", "y"]);
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn json(&self, name: &str, value: Value) {
        fs::write(self.file(name), value.to_string()).unwrap();
    }

    /// Each tensor holds its own name.
    fn weights(&self, name: &str, tensors: &[&str]) {
        let entry = |i: usize| json!({ "dtype": "F16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2] });
        let header: serde_json::Map<_, _> =
            tensors.iter().enumerate().map(|(i, name)| ((*name).into(), entry(i))).collect();
        let header = Value::from(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        tensors.iter().for_each(|name| file.extend([name.as_bytes()[0], 0]));
        fs::write(self.file(name), file).unwrap();
    }

    fn open(&self) -> Result<ModelFiles, String> {
        ModelFiles::open(self.0.path()).map_err(|error| error.to_string())
    }
}

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}

#[test]
fn a_folder_gives_every_part() {
    let folder = Folder::new();
    folder.json(
        "generation_config.json",
        json!({ "eos_token_id": [7, 5], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true }),
    );
    let files = folder.open().unwrap();
    assert_eq!(files.special_tokens.eos, [7, 5]);
    assert_eq!(files.special_tokens.bos, Some(6));
    assert_eq!(files.special_tokens.texts["eos_token"], "<end>");
    assert_eq!((files.generation.temperature, files.generation.top_k), (Some(0.6), Some(20)));
    assert_eq!(files.tokenizer().unwrap().encode("ab<end>", false).unwrap().get_ids(), [2, 5]);
    assert_eq!(files.card().weight_bytes, 4);
}

#[test]
fn a_card_survives_its_trip_over_the_bus() {
    let card = Folder::new().open().unwrap().card();
    let text = serde_json::to_string(&card).unwrap();
    assert_eq!(serde_json::from_str::<ModelCard>(&text).unwrap(), card);
}

#[test]
fn errors_say_what_is_missing_and_what_to_do() {
    let cases: [(&str, &str); 4] = [
        ("config.json", "config.json is missing: a model folder needs it"),
        ("tokenizer.json", "tokenizer.json is missing: copy it from where the model's weights came from"),
        ("model.safetensors", "weight file is missing: put the model's weights there"),
        ("", "cannot be read: No such file or directory"),
    ];
    for (name, expected) in cases {
        let folder = Folder::new();
        let path = if name.is_empty() { folder.file("absent") } else { folder.0.path().to_owned() };
        if !name.is_empty() {
            fs::remove_file(folder.file(name)).unwrap();
        }
        let error = ModelFiles::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "{error}");
    }
    let folder = Folder::new();
    fs::rename(folder.file("tokenizer.json"), folder.file("tokenizer.model")).unwrap();
    assert!(
        folder.open().unwrap_err().contains("the folder has tokenizer.model only; save the tokenizer again")
    );
    let other = folder.file("tokenizer.model");
    assert!(ModelFiles::open(&other).unwrap_err().to_string().contains("a file that ends in .gguf"));
}

#[test]
fn errors_in_the_small_files_name_file_and_field() {
    let cases = [
        (
            "generation_config.json",
            json!({ "top_p": 1.5 }),
            "generation_config.json: top_p: 1.5 is not within",
        ),
        ("generation_config.json", json!({ "temperature": "hot" }), "temperature: expected a finite number"),
        (
            "tokenizer_config.json",
            json!({ "eos_token": 3 }),
            "tokenizer_config.json: eos_token: expected a text",
        ),
        ("tokenizer_config.json", json!({ "chat_template": 3 }), "chat_template: expected a text or a list"),
        ("tokenizer_config.json", json!([]), "tokenizer_config.json: JSON: not an object"),
        ("chat_template.json", json!({ "chat_template": [{ "name": "x" }] }), "chat_template: expected"),
    ];
    for (name, content, expected) in cases {
        let folder = Folder::new();
        folder.json(name, content);
        let error = folder.open().unwrap_err();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}

#[test]
fn chat_templates_are_found_where_models_keep_them() {
    let folder = Folder::new();
    let default = |folder: &Folder| folder.open().unwrap().chat_templates.default;
    assert_eq!(default(&folder), None);
    folder.json("chat_template.json", json!({ "chat_template": "json" }));
    assert_eq!(default(&folder).as_deref(), Some("json"));
    let named =
        json!([{ "name": "default", "template": "listed" }, { "name": "tool_use", "template": "tools" }]);
    folder.json("tokenizer_config.json", json!({ "chat_template": named }));
    assert_eq!(default(&folder).as_deref(), Some("listed"));
    assert_eq!(folder.open().unwrap().chat_templates.named["tool_use"], "tools");
    fs::write(folder.file("chat_template.jinja"), "jinja").unwrap();
    assert_eq!(default(&folder).as_deref(), Some("jinja"));
}

#[test]
fn the_revision_changes_with_each_part_but_not_with_sharding() {
    let revision = |change: &dyn Fn(&Folder)| {
        let folder = Folder::new();
        change(&folder);
        folder.open().unwrap().revision
    };
    let plain = revision(&|_| {});
    assert_eq!(plain.as_str().len(), 64);
    let sharded = revision(&|folder| {
        fs::remove_file(folder.file("model.safetensors")).unwrap();
        folder.weights("1.safetensors", &["y"]);
        folder.weights("2.safetensors", &["x"]);
        let map = json!({ "weight_map": { "x": "2.safetensors", "y": "1.safetensors" } });
        folder.json("model.safetensors.index.json", map);
    });
    assert_eq!(plain, sharded);
    let others = [
        revision(&|folder| folder.weights("model.safetensors", &["x", "z"])),
        revision(&|folder| fs::write(folder.file("chat_template.jinja"), "x").unwrap()),
        revision(&|folder| folder.json("generation_config.json", json!({ "eos_token_id": 7 }))),
        revision(&|folder| {
            folder.json("config.json", json!({ "model_type": "qwen3", "vocab_size": 9, "eos_token_id": 5 }));
        }),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != plain && !others[..i].contains(other), "change {i}");
    }
}

fn gguf_file() -> Writer {
    let mut writer = Writer::new();
    let strings =
        |texts: &[&str]| gguf::Value::Array(Array::Strings(texts.iter().map(|&t| t.into()).collect()));
    writer.text("general.architecture", "qwen2");
    for key in
        ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]
    {
        writer.number(&format!("qwen2.{key}"), 4);
    }
    writer.number("qwen2.attention.key_length", 16);
    writer.pair("qwen2.attention.layer_norm_rms_epsilon", &gguf::Value::Float(1e-6));
    writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2");
    writer.pair("tokenizer.ggml.tokens", &strings(&["a", "b", "ab", "<|im_end|>", "<|endoftext|>"]));
    writer.pair("tokenizer.ggml.token_type", &gguf::Value::Array(Array::Ints(vec![1, 1, 1, 3, 3])));
    writer.pair("tokenizer.ggml.merges", &strings(&["a b"]));
    writer.number("tokenizer.ggml.eos_token_id", 4);
    writer.text("tokenizer.chat_template", "template").pair("tokenizer.chat_templates", &strings(&["rag"]));
    writer.text("tokenizer.chat_template.rag", "for rag");
    writer.pair("general.sampling.temp", &gguf::Value::Float(0.5));
    writer.tensor("output.weight", DType::F32, &[1], &[0; 4]);
    writer
}

#[test]
fn a_gguf_file_gives_every_part() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.gguf"), gguf_file().finish()).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(files.location, Location::Gguf(folder.path().join("model.gguf")));
    assert_eq!(files.config.decoder.vocab_size, 5);
    assert_eq!(files.special_tokens.eos, [4, 3], "a chat model also ends where its turns end");
    assert_eq!(files.special_tokens.texts["eos_token"], "<|endoftext|>");
    assert_eq!(files.chat_templates.default.as_deref(), Some("template"));
    assert_eq!(files.chat_templates.named["rag"], "for rag");
    assert_eq!(files.generation.temperature, Some(0.5));
    assert_eq!(files.tokenizer().unwrap().encode("ab<|im_end|>", false).unwrap().get_ids(), [2, 3]);

    fs::write(folder.path().join("other.gguf"), gguf_file().finish()).unwrap();
    let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("the folder holds several GGUF files"), "{error}");
}

#[test]
fn a_part_of_a_split_gguf_model_is_refused() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    fs::write(file.path(), gguf_file().number("split.count", 2).finish()).unwrap();
    let error = ModelFiles::open(file.path()).unwrap_err().to_string();
    assert!(error.contains("split.count: a model split into 2 files"), "{error}");
}
