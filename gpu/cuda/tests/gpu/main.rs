//! Tests and timings of the kernels on a real GPU; without one it says so and ends well.
//!
//! `gpu [FILTER]` runs the tests whose names contain FILTER, `gpu bench` times the operations. GPU_TEST_SEED repeats
//! the inputs of an earlier run, GPU_TEST_LIGHT=1 leaves out the large cases (for sanitizers).

mod attention;
mod bench;
mod compare;
mod elementwise;
mod gemm;
mod harness;
mod host;
mod order;
mod random;
mod sampling;

use std::process::ExitCode;

use harness::{Case, Context};

fn cases() -> Vec<Case> {
    [elementwise::cases(), gemm::cases(), attention::cases(), sampling::cases(), order::cases()].concat()
}

fn main() -> ExitCode {
    if let Some(code) = cuda::nvrtc_worker(std::env::args_os()) {
        return code.into();
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let context = match Context::open() {
        Ok(context) => context,
        Err(reason) => {
            println!("skipped, no gpu to test on: {reason}");
            return if std::env::var_os("GPU_TEST_REQUIRED").is_some() { 1.into() } else { 0.into() };
        }
    };
    if filter.as_deref() == Some("bench") {
        return match bench::run(&context) {
            Ok(()) => 0.into(),
            Err(error) => {
                println!("bench failed: {error}");
                1.into()
            }
        };
    }
    context.run(&cases(), filter.as_deref().unwrap_or(""))
}
