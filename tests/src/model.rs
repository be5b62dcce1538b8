use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The toy model: two layers, byte-level tokenizer, ChatML template; made once a test process.
///
/// # Panics
/// If it cannot be written.
pub fn toy() -> &'static Path {
    static TOY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = TOY.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let path = dir.path().join("toy");
        models::synthetic::write_toy(&path).expect("the toy model can be written");
        (dir, path)
    });
    path
}

/// SmolLM2-135M-Instruct: `STATOR_TEST_MODEL`, else what `scripts/model` fetches.
///
/// # Panics
/// If it cannot be fetched.
pub fn smollm2() -> PathBuf {
    if let Some(path) = std::env::var_os("STATOR_TEST_MODEL") {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/model");
    let output = std::process::Command::new(&script).output().expect("scripts/model runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    PathBuf::from(text.lines().last().map(str::trim).unwrap_or_default())
}
