//! A step allocates nothing but the outputs that it hands over. Runs without the test harness, whose own thread may
//! allocate at any time.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use cpu::{CpuConfig, CpuExecutor, KvBudget};
use models::{
    Batch, Executor, Model, OpenSlot, PLACEHOLDER, SamplingParams, SequenceStep, SlotId, StepId,
    synthetic::write_toy,
};

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEQUENCES: u32 = 6;
const PAGES_EACH: u32 = 20;

/// All sequences take `tokens` from position `start` on.
fn batch(step: u64, start: u32, tokens: &[u32]) -> Batch {
    let len = tokens.len() as u32;
    Batch {
        step: StepId(step),
        sequences: (0..SEQUENCES)
            .map(|slot| SequenceStep {
                slot: SlotId(slot),
                tokens: slot * len..(slot + 1) * len,
                start,
                pages: slot * PAGES_EACH..(slot + 1) * PAGES_EACH,
                sample: true,
                score: None,
            })
            .collect(),
        tokens: tokens.repeat(SEQUENCES as usize),
        pages: (0..SEQUENCES * PAGES_EACH).collect(),
        ..Batch::default()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Test runners ask for a list first.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("a_step_allocates_nothing_but_its_outputs: test");
        }
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    write_toy(folder.path())?;
    let model = Model::open(folder.path())?;
    let config = CpuConfig { threads: 2, kv: KvBudget::Pages(200), slots: 8, ..CpuConfig::default() };
    let mut cpu = CpuExecutor::new(&model, &config, &mut |_| {})?;
    let mut prompt = batch(1, 0, &[7; 40]);
    prompt.opens = (0..SEQUENCES)
        .map(|slot| OpenSlot {
            slot: SlotId(slot),
            params: SamplingParams {
                top_k: [0, 9][slot as usize % 2],
                top_p: [1.0, 0.9][slot as usize / 2 % 2],
                presence_penalty: [0.0, 0.3][slot as usize / 4],
                seed: slot.into(),
                ..SamplingParams::default()
            },
            choice: 0,
            prompt: vec![7; 40],
            output: vec![],
        })
        .collect();
    let ticket = cpu.submit(&prompt)?;
    cpu.collect(ticket)?;
    let batches: Vec<Batch> = (0..250).map(|i| batch(2 + i, 40 + i as u32, &[PLACEHOLDER])).collect();
    let (warm_up, steps) = batches.split_at(10);
    for batch in warm_up {
        let ticket = cpu.submit(batch)?;
        cpu.collect(ticket)?;
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for batch in steps {
        let ticket = cpu.submit(batch)?;
        assert_eq!(cpu.collect(ticket)?.sampled.len(), SEQUENCES as usize);
    }
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    // The list of sampled tokens.
    assert_eq!(allocated, steps.len());
    Ok(())
}
