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
