//! Writes a checkpoint of random weights:
//! `random_checkpoint FOLDER toy|qwen3-0.6b|qwen3-0.6b-fp8|qwen3-8b|qwen3-32b-fp8 [TOKENIZER.json]`. A tokenizer that is
//! given takes the place of the toy's; tokens that it lacks are made up.

use std::path::{Path, PathBuf};

use models::{
    DType,
    synthetic::{qwen3_0_6b_spec, qwen3_8b_spec, qwen3_32b_spec, write_random_checkpoint, write_toy},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(shape)) = (arguments.next(), arguments.next()) else {
        let usage = "usage: random_checkpoint FOLDER toy|qwen3-0.6b|qwen3-0.6b-fp8|qwen3-8b|qwen3-32b-fp8 [TOKENIZER.json]";
        return Err(usage.into());
    };
    let folder = PathBuf::from(folder);
    let spec = qwen3_0_6b_spec();
    match shape.as_str() {
        "toy" => write_toy(&folder)?,
        "qwen3-8b" => write_random_checkpoint(&folder, &qwen3_8b_spec(), DType::BF16, 1)?,
        "qwen3-0.6b" => write_random_checkpoint(&folder, &spec, DType::BF16, 1)?,
        "qwen3-32b-fp8" => write_random_checkpoint(&folder, &qwen3_32b_spec(), DType::F8E4M3, 1)?,
        "qwen3-0.6b-fp8" => write_random_checkpoint(&folder, &spec, DType::F8E4M3, 1)?,
        other => return Err(format!("unknown shape {other}").into()),
    }
    match arguments.next() {
        Some(tokenizer) => replace_tokenizer(&folder, Path::new(&tokenizer), spec.vocab_size),
        None => Ok(()),
    }
}

fn replace_tokenizer(
    folder: &Path,
    tokenizer: &Path,
    vocab_size: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(tokenizer)?)?;
    let vocabulary = json["model"]["vocab"].as_object_mut().ok_or("the tokenizer has no vocabulary")?;
    for id in u32::try_from(vocabulary.len())?..vocab_size {
        vocabulary.insert(format!("w{id}"), id.into());
    }
    std::fs::write(folder.join("tokenizer.json"), serde_json::to_vec(&json)?)?;
    Ok(())
}
