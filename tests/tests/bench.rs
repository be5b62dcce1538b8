//! `stator bench engine`: an engine without bus and HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::process::{Command, Output};

use serde_json::Value;
use stator_tests::{cluster::stator, model::toy};

fn bench(flags: &str) -> Output {
    let model = toy();
    let model = ["--model-path".as_ref(), model.as_os_str()];
    let flags = flags.split_whitespace();
    Command::new(stator()).args(["bench", "engine"]).args(model).args(flags).output().unwrap()
}

#[test]
fn each_prompt_and_batch_gets_a_figure_on_any_device() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let sizes = "--prefill 40 --batch 1,5 --context 20 --tokens 16 --repeat 1 --chunked-prefill-size 16";
    for device in ["cpu --threads 1", "sim --sim-step-ms 5 --sim-prefill-rate 2000"] {
        let output = bench(&format!("--device {device} {sizes} --json {}", report.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        assert_eq!(report["device"], device.split(' ').next().unwrap());
        let figures = report["figures"].as_array().unwrap();
        let names: Vec<&str> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["pp40", "tg batch 1", "tg batch 5"]);
        assert!(figures.iter().all(|figure| figure["tokens_per_s"].as_f64().unwrap() > 0.0), "{report}");
        if device.starts_with("sim") {
            let milliseconds = |place: usize| figures[place]["milliseconds"].as_f64().unwrap();
            assert!(milliseconds(0) >= 20.0, "{report}");
            assert!(milliseconds(1) > 4.5 && milliseconds(2) > 4.5, "{report}");
        }
    }
}

#[test]
fn sequences_that_do_not_fit_at_once_are_told_of_with_the_room_there_is() {
    let output = bench("--device cpu --prefill 8 --batch 8 --context 64 --tokens 8 --max-total-tokens 128");
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("8 sequences of 64 tokens") && error.contains("KV for 128 tokens"), "{error}");
}
