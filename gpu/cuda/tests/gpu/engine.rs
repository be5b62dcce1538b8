//! Times of whole steps through the executor, and a comparison with another implementation.

mod library;
mod reference;
mod steps;

use std::time::Instant;

use cuda::{CudaConfig, CudaError, CudaExecutor, KvBudget, KvFormat, WeightFormat, ops::GemmMode};
use models::{DecoderSpec, synthetic};

use self::steps::{STEPS, Steps};
pub use self::{library::run as library, reference::compare};
use crate::{harness::Context, setup::config};

/// A model with random weights, and the steps that are timed: decodes as context and batch, prefills as tokens, mixed
/// steps as sequences that decode and prompt tokens beside them.
struct Timed {
    name: &'static str,
    spec: DecoderSpec,
    weights: WeightFormat,
    kv_format: KvFormat,
    decodes: &'static [(usize, usize)],
    prefills: &'static [usize],
    mixed: &'static [(usize, usize)],
}

fn models() -> [Timed; 4] {
    let decodes = &[(1024, 1), (1024, 8), (1024, 64), (1024, 256), (8192, 1), (8192, 8)];
    let prefills = &[1024, 8192];
    let (weights, kv_format) = (WeightFormat::AsStored, KvFormat::Bf16);
    // rows in all that are multiples of 256, and prompts that are
    let mixed = &[
        (8, 248),
        (8, 504),
        (64, 192),
        (64, 256),
        (64, 448),
        (64, 512),
        (64, 704),
        (64, 1024),
        (64, 1984),
        (64, 2048),
        (224, 288),
        (224, 544),
        (224, 800),
        (224, 1824),
    ];
    [
        Timed {
            name: "Qwen3-0.6B",
            spec: synthetic::qwen3_0_6b_spec(),
            weights,
            kv_format,
            decodes,
            prefills,
            mixed,
        },
        Timed {
            name: "Qwen3-8B",
            spec: synthetic::qwen3_8b_spec(),
            weights,
            kv_format,
            decodes,
            prefills,
            mixed,
        },
        Timed {
            name: "Qwen3-32B-FP8",
            spec: synthetic::qwen3_32b_spec(),
            weights: WeightFormat::Fp8,
            kv_format,
            decodes: &[(1024, 1), (1024, 8), (1024, 64)],
            prefills,
            mixed: &[(64, 192), (64, 448)],
        },
        Timed {
            name: "Qwen3-8B-KV8",
            spec: synthetic::qwen3_8b_spec(),
            weights,
            kv_format: KvFormat::Fp8E4m3,
            decodes: &[(1024, 64), (1024, 256), (8192, 8)],
            prefills,
            mixed: &[],
        },
    ]
}

/// Decode, prefill and mixed steps of the models whose names contain `filter`, those whose labels contain `step`, in both
/// modes.
pub fn run(context: Context, filter: &str, step: &str) -> Result<(), CudaError> {
    let read_rate = context.device.read_rate()?;
    drop(context);
    println!("read rate {:.3} TB/s", read_rate * 1e-12);
    println!(
        "\n{:<14}{:<16}{:<24}{:>6}{:>10}{:>10}{:>9}{:>9}",
        "model", "kernels", "step", "batch", "device ms", "wall ms", "floor ms", "% floor"
    );
    for Timed { name, spec, weights, kv_format, decodes, prefills, mixed } in models() {
        if !name.contains(filter) {
            continue;
        }
        for mode in [GemmMode::BatchInvariant, GemmMode::BatchVariant] {
            let begin = Instant::now();
            let config = CudaConfig {
                gemm: mode,
                weights,
                kv_format,
                ..config(256, 8192, KvBudget::MemoryFraction(0.9))
            };
            let mut executor = CudaExecutor::dummy(&spec, &config)?;
            executor.fill_kv()?;
            let seconds = begin.elapsed().as_secs_f64();
            let launches = executor.launches_per_decode_step();
            println!("# {name} {mode:?}: ready in {seconds:.2} s, {launches} launches a decode step");
            let mut steps = Steps { executor: &mut executor, name, mode, read_rate, count: STEPS };
            for &(nominal, batch) in decodes {
                if format!("decode, context {nominal} x {batch}").contains(step) {
                    steps.decode(nominal, batch)?;
                }
            }
            for &tokens in prefills {
                if format!("prefill, {tokens} tokens").contains(step) {
                    steps.prefill(tokens)?;
                }
            }
            for &(decodes, prompt) in mixed {
                if format!("{decodes} with {prompt} prompt tokens").contains(step) {
                    steps.mixed(decodes, prompt)?;
                }
            }
        }
    }
    Ok(())
}
