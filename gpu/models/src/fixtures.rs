//! Reference data that `scripts/reference/make_fixtures.py` made with Hugging Face transformers, for the tests of
//! this workspace. Loading panics if a fixture is not as the script writes it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{TokenId, synthetic};

mod smollm2;

pub use smollm2::{Position, TeacherForced, smollm2, smollm2_file};

/// Tiny checkpoints: a folder each, with config.json and f32 weights.
pub const CHECKPOINTS: [&str; 7] =
    ["llama", "llama3_rope", "linear_rope", "yarn_rope", "qwen2", "qwen3", "mistral"];

/// A tiny checkpoint and what it must compute. Tests accept logits within `5e-5 ×` [`Case::max_logit`]; each
/// checkpoint was shown to break that bound clearly for the mistakes listed in the script.
#[derive(Debug)]
pub struct Checkpoint {
    pub path: PathBuf,
    pub cases: Vec<Case>,
}

/// A prompt, its greedy continuation, and f32 logits.
#[derive(Debug)]
pub struct Case {
    pub prompt: Vec<TokenId>,
    /// 24 tokens.
    pub greedy: Vec<TokenId>,
    vocab_size: usize,
    logits: Vec<f32>,
}

impl Case {
    /// Prompt and continuation without its last token: an input for every row of logits.
    pub fn tokens(&self) -> Vec<TokenId> {
        self.prompt.iter().chain(&self.greedy[..self.greedy.len() - 1]).copied().collect()
    }

    /// Logits after the token at `position` of [`Case::tokens`].
    pub fn logits(&self, position: usize) -> &[f32] {
        &self.logits[position * self.vocab_size..][..self.vocab_size]
    }

    /// Largest absolute logit of the case.
    pub fn max_logit(&self) -> f32 {
        self.logits.iter().fold(0.0, |max, logit| max.max(logit.abs()))
    }
}

#[derive(Deserialize)]
struct Reference {
    vocab_size: usize,
    cases: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
}

/// Loads the checkpoint of this name.
pub fn checkpoint(name: &str) -> Checkpoint {
    let path = folder(name);
    let reference: Reference = json(&path.join("reference.json"));
    let all = floats(&fs::read(path.join("reference.bin")).expect("a fixture has reference.bin"));
    let mut rest = all.as_slice();
    let mut cases = Vec::new();
    for Described { prompt, greedy } in reference.cases {
        let rows = prompt.len() + greedy.len() - 1;
        let (logits, others) = rest.split_at(rows * reference.vocab_size);
        rest = others;
        cases.push(Case { prompt, greedy, vocab_size: reference.vocab_size, logits: logits.to_vec() });
    }
    assert!(rest.is_empty(), "{name}: logits beyond the cases");
    Checkpoint { path, cases }
}

/// All of [`CHECKPOINTS`], with their names.
pub fn checkpoints() -> impl Iterator<Item = (&'static str, Checkpoint)> {
    CHECKPOINTS.into_iter().map(|name| (name, checkpoint(name)))
}

/// Writes the toy model, but that the embedding of one token is no number.
pub fn write_spoiled_toy(dir: &Path, token: TokenId) {
    synthetic::write_toy(dir).expect("a folder to write to");
    let path = dir.join("model.safetensors");
    let mut file = fs::read(&path).expect("the toy has weights");
    let (length, rest) = file.split_first_chunk_mut().expect("a header has its length in front");
    let (header, data) = rest.split_at_mut(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).expect("the header is JSON");
    let begin = header["model.embed_tokens.weight"]["data_offsets"][0].as_u64().expect("an embedding");
    let row = size_of::<f32>() * synthetic::toy_spec().hidden_size as usize;
    data[begin as usize + token as usize * row..][..row].fill(0xff);
    fs::write(path, file).expect("a file to write to");
}

/// In this crate's sources, or in `STATOR_TEST_FIXTURES`, where a test binary runs that was built elsewhere.
fn folder(name: &str) -> PathBuf {
    let all = std::env::var_os("STATOR_TEST_FIXTURES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures"), PathBuf::from);
    all.join(name)
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = fs::read(path).expect("a fixture has its JSON file");
    serde_json::from_slice(&text).expect("a fixture is as the script writes it")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests;
