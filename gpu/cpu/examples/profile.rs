//! Where the time of a step goes: `cargo run --release -p cpu --example profile -- MODEL [THREADS [CASE]]`.

use std::{env, path::Path, time::Instant};

use cpu::{CpuConfig, CpuExecutor, KvBudget, PhaseKind};
use models::{
    Batch, Executor, Model, OpenSlot, PLACEHOLDER, SamplingParams, SequenceStep, SlotId, StepId, TokenId,
};

const PAGE: u32 = 16;
const PROMPT: u32 = 512;
const PAGES_EACH: u32 = 1024 / PAGE;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().ok_or("usage: profile MODEL [THREADS]")?;
    let threads = arguments.next().map_or(Ok(CpuConfig::default().threads), |threads| threads.parse())?;
    let case: Option<usize> = arguments.next().map(|case| case.parse()).transpose()?;
    let model = Model::open(Path::new(&path))?;
    let config =
        CpuConfig { threads, page_size: PAGE, kv: KvBudget::Pages(32 * PAGES_EACH), ..CpuConfig::default() };
    let since = Instant::now();
    let mut cpu = CpuExecutor::new(&model, &config, &mut |_| {})?;
    println!(
        "{} on {threads} threads, ready in {:.2?}: {:?}",
        cpu.isa().name(),
        since.elapsed(),
        cpu.memory()
    );
    let cases = [(1, PROMPT, 0, 4), (1, 1, 64, 200), (1, 1, 600, 200), (8, 1, 64, 60), (32, 1, 64, 30)];
    for (index, (sequences, tokens, start, steps)) in cases.into_iter().enumerate() {
        if case.is_none_or(|case| case == index) {
            measure(&mut cpu, sequences, tokens, start, steps)?;
        }
    }
    Ok(())
}

/// Runs `steps` steps of `sequences` sequences, `tokens` tokens each from position `start` on, and prints their rate.
fn measure(
    cpu: &mut CpuExecutor,
    sequences: u32,
    tokens: u32,
    start: u32,
    steps: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let opens = (0..sequences).map(|slot| OpenSlot {
        slot: SlotId(slot),
        params: params.clone(),
        choice: 0,
        prompt: vec![],
        output: vec![],
    });
    let token = if tokens == 1 { PLACEHOLDER } else { 1 };
    let mut batch = batch(sequences, tokens, 0, 9);
    batch.opens = opens.collect();
    run(cpu, &batch)?;
    // Once for pages and buffers that are touched for the first time, once to measure.
    for step in 0..steps {
        let position = if tokens == 1 { start + step } else { start };
        run(cpu, &self::batch(sequences, tokens, position, token))?;
    }
    let mut best = f64::MAX;
    cpu.clear_profile();
    let since = Instant::now();
    for step in 0..steps {
        let position = if tokens == 1 { start + step } else { start };
        let batch = self::batch(sequences, tokens, position, token);
        let since = Instant::now();
        run(cpu, &batch)?;
        best = best.min(since.elapsed().as_secs_f64());
    }
    let mean = since.elapsed().as_secs_f64() / f64::from(steps);
    let per_step = f64::from(sequences * tokens);
    let bytes = cpu.weight_bytes_per_step() as f64;
    println!(
        "\n{sequences} x {tokens} at {start}: {:.0} tok/s (best {:.0}), {:.2} ms, weights at {:.1} GB/s",
        per_step / mean,
        per_step / best,
        mean * 1e3,
        bytes / mean / 1e9
    );
    let profile = cpu.profile();
    for kind in PhaseKind::ALL {
        let time = profile.time(kind).as_secs_f64() / f64::from(steps);
        if time > 0.0 {
            println!("    {kind:<16?}{:8.1} us {:5.1} %", time * 1e6, time / mean * 100.0);
        }
    }
    let closes = (0..sequences).map(SlotId).collect();
    run(cpu, &Batch { closes, ..Batch::default() })
}

fn batch(sequences: u32, tokens: u32, start: u32, token: TokenId) -> Batch {
    Batch {
        step: StepId(1),
        sequences: (0..sequences)
            .map(|slot| SequenceStep {
                slot: SlotId(slot),
                tokens: slot * tokens..(slot + 1) * tokens,
                start,
                pages: slot * PAGES_EACH..(slot + 1) * PAGES_EACH,
                sample: true,
                score: None,
            })
            .collect(),
        tokens: vec![token; (sequences * tokens) as usize],
        pages: (0..sequences * PAGES_EACH).collect(),
        ..Batch::default()
    }
}

fn run(cpu: &mut CpuExecutor, batch: &Batch) -> Result<(), Box<dyn std::error::Error>> {
    let ticket = cpu.submit(batch)?;
    cpu.collect(ticket)?;
    Ok(())
}
