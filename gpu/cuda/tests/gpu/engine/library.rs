//! Which algorithms of cuBLASLt suit a card: those that it proposes and their relatives, timed where they are used, in steps
//! of a model of a few layers. What is printed last is the table of `blas/choices.rs`.

use cuda::{Algorithm, CudaConfig, CudaError, CudaExecutor, KvBudget, Product, ops};
use half::bf16;
use models::{DecoderSpec, synthetic};

use super::steps::{Steps, median};
use crate::{harness::Context, setup::config};

const LAYERS: u32 = 8;
/// Steps of which a time is the median.
const STEPS: usize = 8;
/// Rounds in which the best are compared.
const ROUNDS: usize = 9;
/// As many as are compared further after a first round.
const BEST: usize = 6;
/// Relatives of so many proposals are tried.
const PARENTS: usize = 4;
/// What a choice must gain of a step to be one.
const GAIN: f64 = 0.002;

/// A step whose products are chosen for.
#[derive(Clone, Copy)]
enum Step {
    Decode(usize),
    Mixed(usize, usize),
    Prefill(usize),
}

impl Step {
    fn rows(self) -> usize {
        match self {
            Self::Decode(rows) | Self::Prefill(rows) => rows,
            Self::Mixed(decodes, prompt) => decodes + prompt,
        }
    }

    /// Milliseconds on the device.
    fn time(self, steps: &mut Steps<'_>) -> Result<f64, CudaError> {
        let mixed = |found: Option<_>| found.ok_or_else(|| CudaError::Shape("the pool is too small".into()));
        Ok(match self {
            Self::Decode(rows) => mixed(steps.mixed_steps(1024, rows, 0)?)?.0.device,
            Self::Mixed(decodes, prompt) => mixed(steps.mixed_steps(1024, decodes, prompt)?)?.0.device,
            Self::Prefill(tokens) => steps.prompts(tokens)?.device,
        })
    }

    /// Products of this step that the library makes, with what they are.
    fn products(self, spec: &DecoderSpec) -> Vec<(&'static str, Product)> {
        let m = self.rows();
        let [hidden, query, intermediate] =
            [spec.hidden_size, spec.query_width(), spec.intermediate_size].map(|size| size as usize);
        let mut products = vec![
            ("qkv", Product { m, n: query + 2 * spec.kv_width() as usize, k: hidden, wide: false }),
            ("o", Product { m, n: hidden, k: query, wide: true }),
            ("down", Product { m, n: hidden, k: intermediate, wide: true }),
        ];
        if matches!(self, Self::Decode(_)) {
            products.push(("head", Product { m, n: spec.vocab_size as usize, k: hidden, wide: true }));
        }
        products
    }
}

/// Finds them for the models whose names contain `filter`.
pub fn run(context: Context, filter: &str) -> Result<(), CudaError> {
    let gpu = context.device.info().name.clone();
    let Some(version) = context.device.library_version() else {
        println!("no cublaslt");
        return Ok(());
    };
    drop(context);
    let mut table = Vec::new();
    for (name, spec) in
        [("Qwen3-0.6B", synthetic::qwen3_0_6b_spec()), ("Qwen3-8B", synthetic::qwen3_8b_spec())]
    {
        if !name.contains(filter) {
            continue;
        }
        let spec = DecoderSpec { layers: LAYERS, ..spec };
        let config = CudaConfig {
            gemm: ops::GemmMode::BatchVariant,
            graphs: false,
            ..config(256, 8192, KvBudget::MemoryFraction(0.6))
        };
        let mut executor = CudaExecutor::dummy(&spec, &config)?;
        executor.fill_kv()?;
        for step in [Step::Decode(128), Step::Decode(256), Step::Mixed(64, 448), Step::Prefill(8192)] {
            for (label, product) in step.products(&spec) {
                let label = format!("{name} {label} {}", product.m);
                if let Some(choice) = choose(&mut executor, step, product, &label)? {
                    table.push((product, choice));
                }
            }
        }
    }
    println!("{gpu}, cublaslt {version}");
    for (
        Product { m, n, k, wide },
        Algorithm { id, tile, stages, split, reduction, swizzle, custom, inner, cluster },
    ) in table
    {
        println!(
            "    row([{m}, {n}, {k}], {wide}, [{id}, {tile}, {stages}, {split}, {reduction}, {swizzle}, {custom}, {inner}, {cluster}]),"
        );
    }
    Ok(())
}

/// The best algorithm for one product, which is then used; `None` if it is the library's first proposal.
fn choose(
    executor: &mut CudaExecutor,
    step: Step,
    product: Product,
    label: &str,
) -> Result<Option<Algorithm>, CudaError> {
    let proposals = executor.device().library_algorithms(product)?;
    let mut candidates = Vec::new();
    for algorithm in proposals.iter().copied().chain(proposals.iter().take(PARENTS).flat_map(relatives)) {
        if !candidates.contains(&algorithm) && executor.device().choose_algorithm(product, algorithm)? {
            candidates.push(algorithm);
        }
    }
    let mut timed: Vec<(Algorithm, Vec<f64>)> = candidates.into_iter().map(|one| (one, Vec::new())).collect();
    let Some(first) = timed.first().map(|(algorithm, _)| *algorithm) else { return Ok(None) };
    for round in 0..=ROUNDS {
        // in turns, since the clock falls while a card becomes warm
        let begin = round % timed.len();
        timed.rotate_left(begin);
        for (algorithm, times) in &mut timed {
            executor.device().choose_algorithm(product, *algorithm)?;
            let mut steps = Steps {
                executor: &mut *executor,
                name: "",
                mode: ops::GemmMode::BatchVariant,
                read_rate: 1.0,
                count: STEPS,
            };
            times.push(step.time(&mut steps)?);
        }
        if round == 0 {
            timed.sort_by(|a, b| a.1[0].total_cmp(&b.1[0]));
            let mut place = 0;
            timed.retain(|(algorithm, _)| {
                place += 1;
                place <= BEST || *algorithm == first
            });
        }
    }
    // against the mean of their round
    let means: Vec<f64> = (1..=ROUNDS)
        .map(|round| timed.iter().map(|(_, times)| times[round]).sum::<f64>() / timed.len() as f64)
        .collect();
    let mut results: Vec<(f64, Algorithm)> = timed
        .into_iter()
        .map(|(algorithm, times)| {
            let mut shares: Vec<f64> =
                times[1..].iter().zip(&means).map(|(time, mean)| time / mean).collect();
            (median(&mut shares), algorithm)
        })
        .collect();
    let base = results.iter().find(|result| result.1 == first).map_or(1.0, |result| result.0);
    results.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = None;
    for &(share, algorithm) in &results {
        println!("{label:<24}{:>+7.2} %  {algorithm:?}", (share / base - 1.0) * 100.0);
        if best.is_none() && share < base * (1.0 - GAIN) {
            executor.device().choose_algorithm(product, algorithm)?;
            if repeats(executor, product)? {
                best = Some(algorithm);
            } else {
                println!("{label:<24}this one's bits vary");
            }
        }
    }
    println!("{label:<24}of {:.3} ms", means[means.len() - 1]);
    executor.device().choose_algorithm(product, best.unwrap_or(first))?;
    Ok(best)
}

/// Others of the same kind: in another order, by other clusters, with k in other parts.
fn relatives(parent: &Algorithm) -> Vec<Algorithm> {
    let mut all = vec![Algorithm { swizzle: 1 - parent.swizzle.min(1), ..*parent }];
    all.extend([0, 2, 3, 5].map(|cluster| Algorithm { cluster, ..*parent }));
    all.extend([1, 2, 4].map(|split| Algorithm {
        split,
        reduction: if split == 1 { 0 } else { parent.reduction.max(2) },
        ..*parent
    }));
    all
}

/// Whether a product has the same bits each time.
fn repeats(executor: &CudaExecutor, Product { m, n, k, wide }: Product) -> Result<bool, CudaError> {
    let device = executor.device();
    let (x, w) = (device.allocate::<bf16>(m * k)?, device.allocate::<bf16>(n * k)?);
    device.fill_bf16(ops::FillBf16 { out: x.view(), seed: 3, scale: 1.0 })?;
    device.fill_bf16(ops::FillBf16 { out: w.view(), seed: 5, scale: 0.1 })?;
    let out = device.allocate::<f32>(m * n)?;
    let mut first = Vec::new();
    for _ in 0..4 {
        device.fill_bytes(out.view(), 0)?;
        let output =
            if wide { ops::GemmOutput::AddF32(out.view()) } else { ops::GemmOutput::Bf16(out.view().cast()) };
        device.gemm(ops::Gemm {
            output,
            x: x.view(),
            w: w.view().into(),
            scale: ops::RowScale::One,
            m,
            n,
            k,
            mode: ops::GemmMode::BatchVariant,
            half: false,
        })?;
        let bits: Vec<u32> = device.read(out.view())?.into_iter().map(f32::to_bits).collect();
        if first.is_empty() {
            first = bits;
        } else if first != bits {
            return Ok(false);
        }
    }
    Ok(true)
}
