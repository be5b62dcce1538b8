//! The scripts tell how they are used, whatever else this machine lacks for them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{fs, path::Path, process::Command};

#[test]
fn every_shell_script_prints_the_comment_at_its_top_when_asked_for_help() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let mut asked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next() != Some("#!/usr/bin/env bash") {
            continue;
        }
        let top = lines.take_while(|line| line.starts_with('#') && !line.starts_with("# shellcheck"));
        let expected: Vec<&str> = top.map(|line| line.strip_prefix("# ").unwrap_or("")).collect();
        for flag in ["--help", "-h"] {
            let output = Command::new(&path).arg(flag).output().unwrap();
            let (said, complaints) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
            assert!(output.status.success(), "{} {flag}: {complaints}", path.display());
            assert_eq!(String::from_utf8(said).unwrap().lines().collect::<Vec<_>>(), expected);
        }
        asked += 1;
    }
    assert!(asked >= 15, "{asked} scripts");
}
