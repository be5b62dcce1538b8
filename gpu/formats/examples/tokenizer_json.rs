//! Prints the tokenizer.json of a model: `tokenizer_json PATH`.

use std::{io::Write, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: tokenizer_json PATH")?;
    let files = formats::ModelFiles::open(Path::new(&path))?;
    std::io::stdout().write_all(&files.tokenizer_json)?;
    Ok(())
}
