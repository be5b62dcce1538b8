//! Tests and timings of the kernels on a real GPU; without one it says so and ends well.
//!
//! `gpu [FILTER]` runs the tests whose names contain FILTER, `gpu bench` times the operations, `gpu engine [MODEL] [STEP]`
//! whole steps (of the models whose names contain MODEL, steps that contain STEP), `gpu compare` checks a model against what
//! `scripts/gpu-reference` computed for it, `gpu smollm2` SmolLM2's file against its f32 reference, `gpu library [MODEL]` finds
//! which of cuBLASLt's algorithms suit the card (it only prints them). GPU_TEST_SEED repeats the inputs of an earlier run, GPU_TEST_LIGHT=1 leaves out the large cases (for sanitizers),
//! GPU_TEST_OPERATIONS=1 the executor.

mod attention;
mod bench;
mod checkpoint;
mod company;
mod compare;
mod crowd;
mod elementwise;
mod engine;
mod exchange;
mod executor;
mod fault;
mod fp8;
mod fp8_models;
mod gemm;
mod halves;
mod harness;
mod host;
mod lone;
mod order;
mod persistent;
mod random;
mod sampling;
mod scheduled;
mod setup;
mod smollm2;
mod spoiled;
mod transfer;
mod variant;

use std::process::ExitCode;

use harness::{Case, Context};

fn cases() -> Vec<Case> {
    let operations = [
        elementwise::cases(),
        gemm::cases(),
        fp8::cases(),
        attention::cases(),
        sampling::cases(),
        order::cases(),
    ]
    .concat();
    match std::env::var_os("GPU_TEST_OPERATIONS") {
        Some(_) => operations,
        None => {
            let models = [
                executor::cases(),
                spoiled::cases(),
                scheduled::cases(),
                crowd::cases(),
                variant::cases(),
                persistent::cases(),
                halves::cases(),
                fp8_models::cases(),
            ]
            .concat();
            [operations, models, fault::cases(), transfer::cases(), exchange::cases()].concat()
        }
    }
}

/// Stands for every case where a test runner wants one name.
const ALL: &str = "on_the_gpu";

fn main() -> ExitCode {
    if let Some(code) = cuda::nvrtc_worker(std::env::args_os()) {
        return code.into();
    }
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    // Test runners ask for a list first; to them all of this is one test.
    if asked("--list") {
        if !asked("--ignored") {
            println!("{ALL}: test");
        }
        return 0.into();
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-') && argument != ALL);
    let context = match Context::open() {
        Ok(context) => context,
        Err(reason) => {
            println!("skipped, no gpu to test on: {reason}");
            return if std::env::var_os("GPU_TEST_REQUIRED").is_some() { 1.into() } else { 0.into() };
        }
    };
    let done = match filter.as_deref() {
        Some("bench") => bench::run(&context).map_err(|error| error.to_string()),
        Some("engine") => {
            let mut named = std::env::args().skip(2);
            let (model, step) = (named.next().unwrap_or_default(), named.next().unwrap_or_default());
            engine::run(context, &model, &step).map_err(|error| error.to_string())
        }
        Some("library") => {
            let model = std::env::args().nth(2).unwrap_or_default();
            engine::library(context, &model).map_err(|error| error.to_string())
        }
        Some("compare") => engine::compare(context),
        Some("smollm2") => smollm2::run(context),
        Some(transfer::WRITER) => transfer::write_as_child(&context),
        Some(transfer::RECEIVER) => transfer::receive_as_child(&context),
        Some(fault::CHILD) => fault::fail(&context),
        filter => return context.run(&cases(), filter.unwrap_or("")),
    };
    match done {
        Ok(()) => 0.into(),
        Err(error) => {
            println!("failed: {error}");
            1.into()
        }
    }
}
